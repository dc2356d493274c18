"""What messages tell people to write is what the commands accept."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main

from semidavil.__main__ import app
from semidavil.config import Config, every_setting
from sweeps.cli import parser

ROOT = Path(__file__).parents[1]
PACKAGES = ("semidavil", "sweeps", "analysis")
# Options of other programs, which messages name as well.
OTHERS = {
    "ray": {"--head"},
    "mlflow": {
        "--run-id",
        "--artifact-path",
        "--dst-path",
        "--experiment-id",
        "--host",
        "--backend-store-uri",
    },
    "squeue": {"--me"},
    "sbatch": {
        "--partition",
        "--gpus",
        "--time",
        "--array",
        "--job-name",
        "--open-mode",
        "--output",
        "--requeue",
        "--signal",
    },
    "hf": {"--local-dir"},
    "convmv": {"--notest"},
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
# A setting with a value, or before a word that says one.
SETTING = re.compile(
    r"(?<![\w./])((?:data|model|loss|training|rivals|volumes|runtime)\.[a-z_0-9]+)="
)
COMMAND = re.compile(r"python (?:sweeps/(?=\w+\.py)|-m sweeps )(\w+)(?:\.py)?((?: [^\s:;,()]+)*)")


def texts(path: Path) -> Iterator[str]:
    """Every text of a file but docstrings; of an f-string the whole, with X for what it is filled with."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, parents) and node.body and isinstance(node.body[0], ast.Expr)
    }
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in ast.walk(node) if part is not node}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in docs or id(node) in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part_of(part) for part in node.values)


def part_of(part: ast.expr) -> str:
    """A part of an f-string; `{command("run")}` is what it makes."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    if isinstance(part, ast.FormattedValue) and isinstance(call := part.value, ast.Call):
        names = [name.value for name in call.args if isinstance(name, ast.Constant)]
        if isinstance(call.func, ast.Name) and call.func.id == "command" and names:
            return f"python sweeps/{names[0]}.py"
    return "X"


@cache
def all_texts() -> list[tuple[str, str]]:
    files = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), text) for path in files for text in texts(path)]


def options_of(command: argparse.ArgumentParser) -> set[str]:
    found = set(command._option_string_actions)
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= options_of(inner)
    return found


def known_options() -> set[str]:
    known = options_of(parser())
    group = typer.main.get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        known |= {name for each in command.params for name in each.opts}
    known |= {name for each in group.params for name in each.opts}
    figures = (ROOT / "analysis" / "make_figures.py").read_text()
    return known | set(OPTION.findall(figures)) | {"--help"}


def test_every_option_that_a_message_names_is_there() -> None:
    known = known_options().union(*OTHERS.values())
    unknown = {
        (file, option)
        for file, text in all_texts()
        if " "
        in text.strip()  # a message, and not an option's own name or another program's argument
        for option in OPTION.findall(text)
        if option not in known
    }
    assert not unknown


def test_every_setting_that_a_message_names_is_there() -> None:
    known = every_setting()
    sections = {name for name, value in Config().model_dump().items() if isinstance(value, dict)}
    found = [(f, name) for f, text in all_texts() for name in SETTING.findall(text)]
    assert len(found) > 30
    assert [(f, name) for f, name in found if name not in known] == []
    assert {name.partition(".")[0] for _, name in found} <= sections


def test_every_command_that_a_message_prints_is_taken() -> None:
    found = [
        (name, arguments.strip().rstrip(".'`\""))
        for _, text in all_texts()
        for name, arguments in COMMAND.findall(text)
        if "-" in arguments and "--help" not in arguments
    ]
    assert found
    for name, arguments in found:
        parts = shlex.split(arguments)
        # An X that follows no option stands for further options.
        before = ["", *parts]
        given = [p for p, b in zip(parts, before, strict=False) if p != "X" or b.startswith("-")]
        try:
            parser().parse_args([name, *given])
        except SystemExit:
            pytest.fail(f"python sweeps/{name}.py {arguments} is not taken")
