"""Where the code lies, and where what it makes is kept."""

from pathlib import Path

_CODE = Path(__file__).resolve().parents[1]
# The checkout whose code runs; None where the packages were installed without one.
CHECKOUT = _CODE if (_CODE / "pyproject.toml").is_file() else None

DRAW = "python analysis/make_figures.py" if CHECKOUT else "python -m analysis"


def command(name: str) -> str:
    """How one types a command of the sweeps: `python sweeps/run.py`, or `python -m sweeps run`."""
    return f"python sweeps/{name}.py" if CHECKOUT else f"python -m sweeps {name}"


def home() -> Path:
    """Where runs, generated data and figures are kept: the checkout, else the working folder."""
    return CHECKOUT or Path.cwd()
