"""Where the code lies, and where what it makes is kept."""

from pathlib import Path

_CODE = Path(__file__).resolve().parents[1]
# The checkout whose code runs; None where the packages were installed without one.
CHECKOUT = _CODE if (_CODE / "pyproject.toml").is_file() else None


def home() -> Path:
    """Where runs, generated data and figures are kept: the checkout, else the working folder."""
    return CHECKOUT or Path.cwd()
