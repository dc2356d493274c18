"""What several tables write into their cells."""

import numpy as np
import pandas as pd

from analysis.drawn import Entry

DASH = "\N{EN DASH}"  # nothing was measured
SIZES = ("M par.", "ms")  # columns: million parameters of the network, milliseconds for one image


def score_text(mean: float, std: float, n: int) -> str:
    """`34.2 ± 0.5 (3)`; one seed has no spread: `34.2 (1)`."""
    spread = f" ± {std:.1f}" if n > 1 else ""
    return f"{mean:.1f}{spread} ({int(n)})"


def sizes_of(runs: pd.DataFrame) -> dict[str, float]:
    """Means of the number of parameters of the whole network and of milliseconds for one image.

    NaN where no run has logged them.
    """
    names = ("parameters", "latency_ms")
    return {name: float(runs[name].mean()) if name in runs else np.nan for name in names}


def size_entries(runs: pd.DataFrame) -> list[Entry]:
    """What stands below `SIZES`."""
    sizes = sizes_of(runs)
    texts = f"{sizes['parameters'] / 1e6:.2f}", f"{sizes['latency_ms']:.1f}"
    return [Entry(DASH if text == "nan" else text) for text in texts]
