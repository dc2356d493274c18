"""Settings as YAML and as a table."""

import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plugin_sources import LIGHT
from rich.console import Console
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.config import PRESETS, ConfigError, every_setting, preset
from semidavil.describe import read_yaml, settings_table, to_yaml


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_printed_is_taken_back(name: str, tmp_path: Path) -> None:
    config = preset(name, {"training.lr": 1e-7, "model.caption_region": "window", "seed": 7})
    (tmp_path / "mine.yaml").write_text(to_yaml(config, name), encoding="utf-8")
    of_file, changes = read_yaml(tmp_path / "mine.yaml")
    assert of_file == name
    assert preset(name, changes) == config
    assert preset("toy", changes).key() == config.key()


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("\xa0")  # which `str.strip` takes for a blank
@example("\x85")  # which YAML folds
@example("a\u2028b\ufeff")
def test_a_prompt_survives_whatever_it_holds(prompt: str) -> None:
    import yaml

    config = preset("paper", {"model.captions": "hf:x", "model.caption_prompt": prompt})
    assert yaml.safe_load(to_yaml(config, "paper"))["model"]["caption_prompt"] == prompt


def test_a_few_lines_will_do(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {lr: 3e-4, steps: 40}\nmodel.fusion: vlga\ndata:\n  crop: 16x32\n")
    name, changes = read_yaml(file)
    config = preset("toy", changes)
    assert name == ""
    assert (config.training.lr, config.model.fusion) == (3e-4, "vlga")
    assert config.data.crop == (16, 32)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training: [", "cannot be read"),
        ("- a", "has no settings"),
        ("preset: huge", "toy, toy-long"),
        ("training: {lr: }", "training.lr has no value"),
    ],
)
def test_a_wrong_file_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_yaml(tmp_path / "mine.yaml")


def test_every_setting_has_a_meaning() -> None:
    console = Console(file=io.StringIO(), width=400)
    table = settings_table(preset("toy"), "toy")
    names, values, of_paper, meanings = (list(column.cells) for column in table.columns)
    assert set(names) == set(every_setting())
    assert [name for name, text in zip(names, meanings, strict=True) if len(text) < 8] == []
    steps = names.index("training.steps")
    assert (values[steps], of_paper[steps]) == ("160", "40000")
    console.print(table)


def test_one_runs_command_prints_and_reads_its_settings(tmp_path: Path) -> None:
    plugin, file = tmp_path / "my.py", tmp_path / "mine.yaml"
    plugin.write_text(LIGHT)
    chosen = [
        "--plugin",
        str(plugin),
        "--fusion",
        "mine",
        "--seed",
        "3",
        "--set",
        "training.steps=4",
    ]
    printed = CliRunner().invoke(app, ["train", "--print-config", *chosen])
    assert printed.exit_code == 0, printed.output
    assert printed.output.startswith("# it uses --plugin my.py@")
    file.write_text(printed.output)
    again = ["train", "--print-config", "--config", str(file)]
    assert CliRunner().invoke(app, [*again, "--plugin", str(plugin)]).output == printed.output
    alone = CliRunner().invoke(app, again)
    assert alone.exit_code == 1
    assert "unknown fusion 'mine'" in alone.output
