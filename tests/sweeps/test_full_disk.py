"""Sweeps on a disk that becomes full: a file system of a few megabytes, really filled."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from servers import assert_undisturbed
from small_disk import SmallDisk
from sweep_process import FOUR, Sweeps

from sweeps.track.store import Store

pytestmark = pytest.mark.slow


def steps_of(sweeps: Sweeps) -> int:
    return sum(event.startswith("step-") for event in sweeps.events())


@pytest.mark.parametrize("full", ["checkpoints", "everything"])
def test_a_full_disk_is_named_and_the_same_command_goes_on_when_there_is_room(
    full: str, small_disk: SmallDisk, empty_store: Path, tmp_path: Path
) -> None:
    place = tmp_path / "store" if full == "checkpoints" else small_disk.folder / "store"
    place.mkdir()
    shutil.copyfile(empty_store, place / "mlflow.db")
    sweeps = Sweeps(Store(place))
    sweeps.folder = tmp_path  # where its events are written
    sweeps.environment |= {
        "SEMIDAVIL_PATIENCE": "2",
        "FAKE_TRAINING": str(tmp_path),
        "SEMIDAVIL_STORAGE": str(small_disk.folder / "checkpoints"),
    }
    process = sweeps.start(*FOUR, step_seconds=0.3)
    sweeps.wait_until(lambda: steps_of(sweeps) >= 8)
    small_disk.fill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "disk is full" in output
    assert "Traceback" not in output

    small_disk.free()
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 4)
    starts = Counter(event.split()[0] for event in sweeps.trainings())
    assert starts.total() - starts["train-from-0"] >= 2  # some went on from their checkpoints
