"""Benchmarks that a plugin names: chosen by name, known by what they say."""

import json
from pathlib import Path

import pytest
import yaml
from harbour import DESCRIPTION, write_harbour
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, preset
from semidavil.data.checks import check_data
from semidavil.data.own import is_own, own_benchmark
from semidavil.descriptions import DescriptionError
from semidavil.plugin_files import PluginError, read
from semidavil.plugins import use
from sweeps.cli import main

TREE = yaml.safe_load(DESCRIPTION)


def plugin(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "places.py"
    path.write_text(text)
    return path


WAYS = {
    "a path": '{"mine": "../harbour/dataset.yaml"}',
    "a folder": '{"mine": "../harbour"}',
    "a dict": f'{{"mine": {{**{TREE}, "folder": "../harbour"}}}}',
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_written_it_is_the_benchmark_of_its_file(way: str, tmp_path: Path) -> None:
    of_file = own_benchmark(str(write_harbour(tmp_path / "harbour")))
    assert not is_own("mine")
    with use(read(plugin(tmp_path / "code", f"BENCHMARKS = {WAYS[way]}"))):
        assert is_own("mine")
        assert own_benchmark("mine") == of_file
        config = preset("toy", {**own_benchmark("mine"), "data.budget": 2})
        check_data(config.replace({"runtime.cache_dir": str(tmp_path / "cache")}))
    assert not is_own("mine")
    assert config.plugins == ()  # its content is in the run
    assert Config.from_params(config.to_params()) == config


def test_a_source_and_a_target_in_a_dict(tmp_path: Path) -> None:
    write_harbour(tmp_path / "harbour")
    target = {**TREE, "folder": "harbour", "classes": {"sky": 1, "road": [2, 3]}}
    entry = {"source": "gta5", "target": target, "map": {"terrain": "road"}, "budgets": [0, 2]}
    with use(read(plugin(tmp_path, f"BENCHMARKS = {{'b': {entry}}}"))):
        settings = own_benchmark("b")
    known = BENCHMARKS[settings["data.benchmark"]]
    assert (known.source, known.classes, known.budgets) == ("gta5", ("sky", "road"), (0, 2))
    assert known.name.startswith("b@")
    folders = json.loads(settings["runtime.folders"])
    assert folders == {known.target: str(tmp_path / "harbour")}


def test_what_is_wrong_is_said_with_the_plugin_s_place(tmp_path: Path) -> None:
    path = plugin(tmp_path, "BENCHMARKS = {'b': 3}")
    with pytest.raises(PluginError, match=r"the benchmark 'b' of the plugin places\.py is neither"):
        use(read(path)).__enter__()
    plugin(tmp_path, f"BENCHMARKS = {{'b': {dict(TREE, klasses=1)}}}")
    with use(read(path)), pytest.raises(DescriptionError, match=r"places\.py: no entry 'klasses'"):
        own_benchmark("b")
    plugin(tmp_path, "BENCHMARKS = {'gta5-camvid': {}}")
    with pytest.raises(PluginError, match="the benchmark 'gta5-camvid', which the package itself"):
        use(read(path)).__enter__()


def test_a_table_of_the_package_that_a_plugin_looks_something_up_in_is_none_of_its_own(
    tmp_path: Path,
) -> None:
    text = (
        "from semidavil.benchmarks import BENCHMARKS\nfrom semidavil.names import LOSSES\n"
        "GRIDS = {'g': [{'data.benchmark': next(iter(BENCHMARKS))}]}\n"
    )
    with use(read(plugin(tmp_path, text))):
        assert not is_own("gta5-camvid")


def test_commands_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_harbour(tmp_path / "harbour")
    path = str(plugin(tmp_path, "BENCHMARKS = {'mine': 'harbour'}"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SEMIDAVIL_TRAIN", raising=False)
    words = [
        "run",
        "--grid",
        "losses",
        "--benchmark",
        "mine",
        "--list",
        "--set",
        f"runtime.cache_dir={tmp_path}",
    ]
    assert main([*words, "--plugin", path]) == 0
    assert "harbour@" in capsys.readouterr().out
    assert main(words) == 2
    assert "unknown benchmark 'mine'" in capsys.readouterr().err
    place = ["data", "--benchmark", "mine", "--cache-dir", str(tmp_path), "--plugin", path]
    done = CliRunner().invoke(app, place)
    assert done.exit_code == 0, done.output
    assert "harbour, train: 9 images" in done.output
