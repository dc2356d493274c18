"""README.md and docs/: every command is one that the parsers take, every file that is linked is there.

CI runs the blocks themselves (`.ci/blocks.py`).
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from semidavil.__main__ import app
from sweeps.cli import parser
from sweeps.run_options import attach_value

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"^\s*(?:\$ )?(python (?:sweeps/\w+\.py|-m semidavil|-m sweeps) .*)$", re.MULTILINE
)


@pytest.fixture(scope="module")
def blocks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("blocks", ROOT / ".ci" / "blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["blocks"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def commands_in(page: Path) -> list[list[str]]:
    text = page.read_text().replace("\\\n", " ")
    lines = (line for line in COMMAND.findall(text) if "..." not in line)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def refuse(script: str, arguments: list[str]) -> None:
    """Raises SystemExit or a UsageError for a command that cannot be given so."""
    if (script, *arguments[:1]) == ("-m", "sweeps"):
        parser().parse_args(arguments[1:])
    elif script == "-m":
        group = typer.main.get_command(app)
        group.make_context("semidavil", arguments[1:2], resilient_parsing=True)
        command = group.commands[arguments[1]]  # type: ignore[attr-defined]
        command.make_context(arguments[1], arguments[2:])
    else:
        parser().parse_args([Path(script).stem, *attach_value(arguments, "--slurm")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_that_the_parsers_take(page: Path) -> None:
    for script, *arguments in commands_in(page):
        try:
            refuse(script, arguments)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page.name}: {shlex.join([script, *arguments])}") from error


def test_a_wrong_command_is_found() -> None:
    with pytest.raises(SystemExit):
        refuse("sweeps/run.py", ["--gird", "attention"])
    with pytest.raises(Exception, match="No such option"):
        refuse("-m", ["semidavil", "predict", "RUN", "a.png", "--outt", "there"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_are_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_blocks_are_run_or_written_as_their_fences_say(blocks: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ echo a > out\na line of output\n$ cat my.py >> out\n```\n"
        "```text\nnot this\n```\n"
        '```python title="my.py"\nprint(1)\n```\n'
        "```python\nopen('out', 'a').write('b')\n```\n"
        "```sh\nfalse\necho never > out\n```\n"
    )
    found = blocks.blocks_of(page)
    assert [(one.line, one.language, one.file) for one in found] == [
        (1, "console", ""), (9, "python", "my.py"), (12, "python", ""), (15, "sh", ""),
    ]  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin"}
    order = [found[1], found[0], found[2]]
    assert [blocks.run(one, tmp_path, environment) for one in order] == [0, 0, 0]
    assert (tmp_path / "out").read_text() == "a\nprint(1)\nb"
    assert blocks.run(found[3], tmp_path, environment) == 1
    assert (tmp_path / "out").read_text() == "a\nprint(1)\nb"


def test_the_folder_of_runs_says_what_it_is() -> None:
    """Git ignores what else is in it: who cleans up takes it along, and `git commit --all` says nothing."""
    assert "mlflow ui" in (ROOT / "mlruns/README.md").read_text()


def test_every_page_is_in_the_navigation(blocks: ModuleType) -> None:
    assert sorted(blocks.pages_of(ROOT)) == sorted(PAGES)


@pytest.mark.parametrize("linked", [False, True])
def test_the_copy_has_what_git_would_add(blocks: ModuleType, linked: bool, tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for name in ("kept.py", "new/file.py", "ignored.txt", "data/scene.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    if linked:  # to another disk
        (root / "data").rename(tmp_path / "data")
        (root / "data").symlink_to(tmp_path / "data")
    (root / ".gitignore").write_text(f"ignored.txt\n{(ROOT / '.gitignore').read_text()}")
    subprocess.run(["git", "-C", str(root), "add", "kept.py"], check=True)
    (root / "kept.py").write_text("changed")
    copy.mkdir()
    blocks.copy_of(root, copy)
    files = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    assert files >= {"kept.py", "new/file.py", ".gitignore"}
    assert "ignored.txt" not in files
    assert (copy / "kept.py").read_text() == "changed"
    assert (copy / "data" / "scene.png").read_text() == "data/scene.png"
