"""Keeps what was drawn in MLflow, beside the plan and the results of the grid that it shows."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from analysis.output import write
from analysis.runs import Tracked

FOLDER = "figures"


def upload(tracked: Tracked, files: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """Logs files to the overviews of their grids, replacing those of the same name.

    Args:
        files: by grid, contents by file name.

    Returns:
        The grids that have an overview.
    """
    reached = []
    for grid, contents in files.items():
        if newest := tracked.overviews(grid)[:1]:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), contents)
                tracked.client.log_artifacts(newest[0], folder, FOLDER)
            reached.append(grid)
    return reached
