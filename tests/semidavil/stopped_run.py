"""A run that is interrupted."""

from pathlib import Path

import pytest

from semidavil.config import Config
from semidavil.train import Report, train


class StopError(Exception):
    pass


def train_until(config: Config, step: int, folder: Path) -> None:
    """Trains with checkpoints in `folder` and stops at the first report of `step` or later."""

    def stop(report: Report) -> None:
        if report.step >= step:
            raise StopError

    with pytest.raises(StopError):
        train(config, stop, folder)
