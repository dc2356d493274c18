"""What imports what: each file stands on floors below it, and nothing that only names things loads torch."""

import ast
import subprocess
import sys
from functools import cache
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
        "semidavil.plugin_files",
        "semidavil.plugins",
        "semidavil.benchmarks",
        "semidavil.seeds",
        "semidavil.bars",
        "semidavil.run_ids",
        "semidavil.full_disk",
        "semidavil.machine",
        "semidavil.marks",
        "semidavil.descriptions",
        "semidavil.registry",
        "semidavil.place",
    },
    {"semidavil.settings"},
    {"semidavil.config"},
    {"semidavil.describe"},
    {"semidavil.toy"},
    {"semidavil.data"},
    {
        "semidavil.device",
        "semidavil.memory",
        "semidavil.meter",
        "semidavil.flops",
        "semidavil.distributed",
    },
    {"semidavil.models"},
    {"semidavil.language"},
    {"semidavil.losses", "semidavil.metrics"},
    {"semidavil.methods"},
    {"semidavil.evaluation"},
    {"semidavil.experiments"},
    {"semidavil.checkpoint", "semidavil.launch", "semidavil.replay"},
    {"semidavil.step"},
    {"semidavil.train"},
    {"semidavil.commands", "semidavil.toy.clip.pretrain"},
    {"semidavil.__main__", "semidavil.data.__main__"},
)
NEVER = {  # what no file of a package imports, at any level
    "semidavil": {"sweeps", "analysis", "ray", "optuna", "mlflow"},
    "sweeps": {"analysis"},
    "analysis": {"torch", "ray", "optuna"},
}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every file of the three packages by the name that it is imported under."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            # `sweeps/run.py` is a command, which nothing can import: `sweeps.run` is the folder.
            command = path.with_suffix("").is_dir()
            name = f"{name}.py" if command else name.removesuffix(".__init__")
            found[name] = path.read_text(encoding="utf-8")
    return found


@cache
def statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a file; each case below changes one file and asks for those of all."""
    nodes = ast.walk(ast.parse(source))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(source: str, known: dict[str, str]) -> set[str]:
    """Every module that a file imports anywhere in it, with the packages that this loads first."""
    names = set()
    for node in statements(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.module, "a relative import"
            names |= {node.module}
            names |= {f"{node.module}.{a.name}" for a in node.names} & known.keys()
    return {
        ".".join(parts[: i + 1])
        for parts in (n.split(".") for n in names)
        for i in range(len(parts))
    }


def floor(module: str) -> int:
    """The number of a file's floor: that of the longest name that it begins with."""
    places = {name: number for number, names in enumerate(FLOORS) for name in names}
    while module not in places:
        module = module.rpartition(".")[0]
    return places[module]


def faults(sources: dict[str, str]) -> list[str]:
    found, arrows = [], {}
    for name, source in sources.items():
        package, everything = name.partition(".")[0], imported(source, sources)
        # What a file's own packages hold has been loaded before it.
        arrows[name] = {
            m for m in everything & sources.keys() if not f"{name}.".startswith(f"{m}.")
        }
        wrong = NEVER[package] & {other.partition(".")[0] for other in everything}
        found += [f"{name} imports {other}" for other in sorted(wrong)]
        if package == "semidavil":
            below = [other for other in arrows[name] if other.startswith("semidavil.")]
            up = [other for other in below if floor(other) > floor(name)]
            found += [f"{name} imports {other}, which stands above it" for other in sorted(up)]
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        found.append("a circle: " + " <- ".join(error.args[1]))
    return found


def test_every_file_imports_only_from_floors_below(sources: dict[str, str]) -> None:
    assert faults(sources) == []


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        (
            "names",
            "import semidavil.config",
            "semidavil.names imports semidavil.config, which stands",
        ),
        (
            "models.fusion",
            "def f():\n    from semidavil.methods.table import METHODS",
            "which stands",
        ),
        ("data.files", "from semidavil.data import readers", "a circle: "),
        ("losses", "import mlflow.tracking", "semidavil.losses imports mlflow"),
        ("train", "from sweeps.plan import cells", "semidavil.train imports sweeps"),
    ],
)
def test_an_arrow_that_goes_up_is_found(
    sources: dict[str, str], module: str, line: str, fault: str
) -> None:
    name = f"semidavil.{module}"
    changed = sources | {name: f"{sources[name]}\n{line}\n"}
    assert any(fault in found for found in faults(changed))


CELLS_OF_EVERY_GRID = """
from semidavil.config import preset
from sweeps.plan.grids import GRIDS
assert all(grid.cells(preset(name)) for grid in GRIDS.values() for name in ("toy", "paper"))
"""


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        (["-c", CELLS_OF_EVERY_GRID], 0, ""),
        (["sweeps/run.py", "--help"], 0, "--grid"),
        (["sweeps/run.py", "--grid", "all", "--list"], 0, " to train"),
        (["sweeps/status.py"], 1, "no sweep of any grid"),
        (["-m", "semidavil", "--help"], 0, "train"),
        (["-m", "semidavil", "data", "--help"], 0, "--data-root"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_what_only_names_things_needs_no_torch(
    without_torch: dict[str, str], command: list[str], code: int, output: str
) -> None:
    done = subprocess.run(
        [sys.executable, *command], env=without_torch, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, output in done.stdout + done.stderr) == (code, True), done
