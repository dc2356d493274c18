"""Plugins: what they define is known while in use, by their content, and their faults have a place."""

import pickle
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from plugin_sources import LIGHT
from rich.console import Console

from semidavil import names, plugins
from semidavil.commands.endings import told
from semidavil.config import Config, ConfigError, preset
from semidavil.plugin_files import PluginError, Source, installed, read
from semidavil.plugins import use

MINE = {"model.fusion": "mine"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(LIGHT)
    return path


def test_what_a_plugin_defines_is_known_while_it_is_in_use(file: Path) -> None:
    before = {table: list(getattr(names, table)) for table in ("FUSIONS", "LOSSES", "METHODS")}
    chosen = {
        **MINE, "loss.name": "half", "training.method": "steady", "model.encoder": "flat",
        "model.captions": "shuffled:silence",
    }  # fmt: skip
    with use(read(file)):
        config = preset("toy", chosen)
        assert config.model.fusion == "mine"
        assert names.METHODS["steady"].data_parallel
        assert "deaf" in names.VISION_ONLY
        assert "mine" not in names.VISION_ONLY
        assert Config.from_params(config.to_params()) == config
    assert {table: list(getattr(names, table)) for table in before} == before
    for path, value in chosen.items():
        with pytest.raises(ConfigError, match=r"unknown.*silence|unknown.*--plugin FILE|timm:NAME"):
            preset("toy", {path: value})


def test_the_key_changes_with_the_source_of_what_is_used_and_no_other(file: Path) -> None:
    plain = preset("toy")
    first = read(file)
    file.write_text(LIGHT + "\n# a remark\n")
    second = read(file)
    keys = set()
    for source in (first, second):
        with use(source):
            config = preset("toy", MINE)
            assert config.plugins == (source.id,)
            assert preset("toy") == plain
            # Whatever was chosen before.
            assert config.replace({"model.fusion": plain.model.fusion}) == plain
            keys.add(config.key())
    assert len(keys - {plain.key()}) == 2
    assert preset("toy").key() == plain.key()


@given(st.sampled_from(["FUSIONS", "LOSSES", "TRAITS", "CAPTIONERS", "ENCODERS", "none"]))
def test_each_kind_of_variant_is_part_of_the_identity(table: str) -> None:
    path, value = {
        "FUSIONS": ("model.fusion", "mine"), "LOSSES": ("loss.name", "half"),
        "TRAITS": ("training.method", "steady"), "CAPTIONERS": ("model.captions", "silence"),
        "ENCODERS": ("model.encoder", "flat"), "none": ("training.lr", 0.5),
    }[table]  # fmt: skip
    with use(Source("my.py", {"my.py": LIGHT})):
        assert bool(preset("toy", {path: value}).plugins) == (table != "none")


def test_two_versions_in_one_process_do_not_mix() -> None:
    sources = [
        Source("my.py", {"my.py": f"NUMBER = {n}\ndef build(*_): return NUMBER\nFUSIONS = {{'mine': build}}"})
        for n in (1, 2)
    ]  # fmt: skip
    table = plugins.Table("FUSIONS", {})
    for _ in range(2):
        for number, source in enumerate(sources, 1):
            with use(source):
                assert table["mine"]() == number
    assert "mine" not in table
    plugins._tables.remove(table)


def test_a_folder_is_a_plugin_whose_files_import_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    (folder / "layers").mkdir(parents=True)
    (folder / "__init__.py").write_text("from .layers.deep import mine\nFUSIONS = {'mine': mine}")
    (folder / "layers" / "__init__.py").touch()
    (folder / "layers" / "deep.py").write_text("def mine(*towers): return 7")
    source = read(folder)
    assert source.id.startswith("ours@")
    elsewhere = pickle.loads(pickle.dumps(source))
    with use(elsewhere):
        assert preset("toy", MINE).plugins == (source.id,)
    source.write(tmp_path / "kept")
    assert read(tmp_path / "kept" / "ours").id == source.id
    (folder / "layers" / "deep.py").write_text("def mine(*towers): return 8")
    assert read(folder).id != source.id


def test_a_single_file_is_kept_as_it_is(file: Path, tmp_path: Path) -> None:
    read(file).write(tmp_path / "kept")
    assert (tmp_path / "kept" / "my.py").read_text() == file.read_text()
    assert read(tmp_path / "kept" / "my.py").id == read(file).id


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = (\n\ny =", "my.py, line 1: SyntaxError"),
        ("import math\nimport no_such_package", "my.py, line 2: ModuleNotFoundError.*installed"),
        ("\nFUSIONS = {'mine': 1 / 0}", "my.py, line 2: ZeroDivisionError"),
        ("import beside", r"from \.beside import"),
        ("X = 1", "defines nothing"),
        ("FUSIONS = ['mine']", "no dict"),
        ("FUSIONS = {'mine': 3}", "'mine'.*no class or function"),
        ("FUSIONS = {'a,b': print}", "'a,b'"),
        ("FUSIONS = {'dlg': print}", "'dlg', which the package itself has already"),
        ("METHODS = {'m': print}", "TRAITS"),
        ("VISION_ONLY = ['m']\nFUSIONS = {'n': print}", "VISION_ONLY"),
        ("from torch import nn\n\nclass Mine(nn.Module):\n  pass\nFUSIONS = {'mine': Mine}",
         r"my.py, line 3: .*no forward"),
        ("\ndef mine(dim):\n  pass\nFUSIONS = {'mine': mine}",
         r"my.py, line 2: .*'mine' is made with \(towers, dim\): too many positional"),
        ("\ndef mine():\n  pass\nLOSSES = {'mine': mine}", r"my.py, line 2: .*\(num_classes\)"),
    ],
)  # fmt: skip
def test_a_fault_of_a_plugin_has_a_place(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    file.with_name("beside.py").touch()
    with pytest.raises(PluginError, match=told), use(read(file)):
        pass
    assert plugins.in_use() == []
    file.write_text(LIGHT)  # mended, in the same process
    with use(read(file)):
        preset("toy", MINE)


def test_two_plugins_that_define_the_same_are_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("FUSIONS = {'mine': print}")
    with (
        use(read(file)),
        pytest.raises(PluginError, match=r"'mine', which my.py@"),
        use(read(other)),
    ):
        pass
    again = tmp_path / "again" / "my.py"
    again.parent.mkdir()
    again.write_text("FUSIONS = {'yours': print}")
    with use(read(file)), pytest.raises(PluginError, match="two plugins"), use(read(again)):
        pass
    with use(read(file)), use(read(file)):  # the same one twice
        preset("toy", MINE)


@pytest.mark.parametrize("name", ["none.py", "folder", "data.txt"])
def test_what_is_no_plugin_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PluginError, match=name):
        read(tmp_path / name)


def test_a_run_of_a_plugin_that_is_not_here_says_which_and_how(file: Path) -> None:
    source = read(file)
    with use(source):
        params = preset("toy", MINE).to_params()
    with pytest.raises(ConfigError, match=f"{source.id}: give --plugin FILE"):
        Config.from_params(params)
    file.write_text(LIGHT + "# changed")
    with use(read(file)), pytest.raises(ConfigError, match="another version"):
        Config.from_params(params)
    with pytest.raises(ConfigError, match="--plugin FILE"):
        preset("toy", {"plugins": "x"})


def test_an_error_in_a_plugin_is_placed(file: Path) -> None:
    file.write_text(
        "def mine(towers, dim):\n    raise TypeError('too short')\n\nFUSIONS = {'mine': mine}"
    )
    table = plugins.Table("FUSIONS", {})
    with use(read(file)), pytest.raises(TypeError) as caught:
        table["mine"](None, 8)
    plugins._tables.remove(table)
    assert plugins.place_of(caught.value) == "my.py, line 2"
    assert plugins.place_of(ValueError()) == ""


def test_a_call_that_a_plugin_does_not_take_is_placed_at_its_class(file: Path) -> None:
    """No frame of the traceback is the plugin's: what called its forward is torch."""
    file.write_text(
        "from torch import nn\n\n\nclass Mine(nn.Module):\n"
        "    def __init__(self, towers, dim):\n        super().__init__()\n\n"
        "    def forward(self, vision):\n        return vision\n\n\nFUSIONS = {'mine': Mine}"
    )
    table = plugins.Table("FUSIONS", {})
    with use(read(file)), pytest.raises(TypeError) as caught:
        table["mine"](None, 8)(1, 2)
    plugins._tables.remove(table)
    assert plugins.place_of(caught.value) == "my.py, line 4"


def test_installed_packages_bring_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "ours-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: ours\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[semidavil.plugins]\nmine = ours_variants\n")
    (tmp_path / "ours_variants.py").write_text("FUSIONS = {'mine': print}")
    monkeypatch.syspath_prepend(tmp_path)
    (source,) = installed()
    assert source.name == "ours_variants.py"
    (tmp_path / "ours_variants.py").unlink()
    with pytest.raises(PluginError, match="ours"):
        installed()


def test_a_command_tells_the_line_of_a_plugin_and_not_a_traceback(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        "def mine(towers, dim):\n    raise TypeError('too short')\n\nFUSIONS = {'mine': mine}"
    )
    table = plugins.Table("FUSIONS", {})
    try:
        with pytest.raises(typer.Exit), told(Console(), "stopped", [str(file)]):
            table["mine"](None, 8)
        with pytest.raises(TypeError), told(Console(), "stopped"):
            raise TypeError("a fault of the package keeps its traceback")
    finally:
        plugins._tables.remove(table)
    assert "my.py, line 2: TypeError: too short" in capsys.readouterr().out
