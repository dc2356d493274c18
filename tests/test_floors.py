"""What imports what: each file stands on floors below it, and nothing that only names things loads torch."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("semidavil", "sweeps", "analysis")

# From the ground up: a file may import those of floors below, and others of its own floor. A folder
# stands for all of its files but those that have a place of their own.
FLOORS = (
    {
        "semidavil",
        "semidavil.names",
        "semidavil.benchmarks",
        "semidavil.seeds",
        "semidavil.full_disk",
        "semidavil.machine",
    },
    {"semidavil.config"},
    {"semidavil.toy"},
    {"semidavil.data"},
    {"semidavil.device", "semidavil.memory", "semidavil.meter", "semidavil.distributed"},
    {"semidavil.models"},
    {"semidavil.language"},
    {"semidavil.losses", "semidavil.metrics"},
    {"semidavil.methods"},
    {"semidavil.evaluation"},
    {"semidavil.experiments"},
    {"semidavil.checkpoint", "semidavil.launch"},
    {"semidavil.train"},
    {"semidavil.commands", "semidavil.toy.clip.pretrain"},
    {"semidavil.__main__", "semidavil.data.__main__"},
)
NEVER = {  # what no file of a package imports, at any level
    "semidavil": {"sweeps", "analysis", "ray", "optuna", "mlflow"},
    "sweeps": {"analysis"},
    "analysis": {"torch", "ray", "optuna"},
}


def modules(root: Path) -> dict[str, Path]:
    """The files of the three packages by the name that they are imported under."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            # `sweeps/run.py` is a command, which nothing can import: `sweeps.run` is the folder.
            command = path.with_suffix("").is_dir()
            found[f"{name}.py" if command else name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Every module that a file imports anywhere in it, with the packages that this loads first."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} imports by a relative name"
            names = [node.module]
            names += [
                f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in known
            ]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def house(root: Path) -> dict[str, set[str]]:
    """What each file of the three packages imports of them; its own packages are not counted."""
    known = modules(root)
    arrows = {}
    for name, path in known.items():
        own = {name.rpartition(".")[0]} | {name}
        own |= {name[:i] for i, letter in enumerate(name) if letter == "."}
        arrows[name] = {other for other in imports(path, known) if other in known} - own
    return arrows


def floor(module: str) -> int:
    """The number of a file's floor: that of the longest name that it begins with."""
    places = {name: number for number, names in enumerate(FLOORS) for name in names}
    while module not in places:
        module = module.rpartition(".")[0]
    return places[module]


def faults(root: Path) -> list[str]:
    arrows, known = house(root), modules(root)
    found = []
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    for name, path in known.items():
        package = name.partition(".")[0]
        if package == "semidavil":
            up = [o for o in arrows[name] if o.startswith("semidavil") and floor(o) > floor(name)]
            found += [f"{name} imports {other}, which stands above it" for other in sorted(up)]
        wrong = NEVER[package] & {other.partition(".")[0] for other in imports(path, known)}
        found += [f"{name} imports {other}" for other in sorted(wrong)]
    return found


def test_every_file_imports_only_from_floors_below() -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("names.py", "import semidavil.config", "semidavil.names imports semidavil.config, which"),
        (
            "models/fusion.py",
            "def f():\n    from semidavil.methods.table import METHODS",
            "which stands",
        ),
        ("data/files.py", "from semidavil.data import readers", "a circle: "),
        ("losses.py", "import mlflow.tracking", "semidavil.losses imports mlflow"),
    ],
)
def test_an_arrow_that_goes_up_is_found(tmp_path: Path, file: str, line: str, fault: str) -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with (tmp_path / "semidavil" / file).open("a") as target:
        target.write(f"\n{line}\n")
    assert any(fault in found for found in faults(tmp_path))
