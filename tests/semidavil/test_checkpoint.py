"""What a checkpoint survives: damage, a kill at any moment, an earlier version's format."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from semidavil.checkpoint import (
    BROKEN,
    CHECKPOINT,
    PREVIOUS,
    OtherDataError,
    TrainingError,
    resume,
    save_checkpoint,
)
from semidavil.config import preset
from semidavil.meter import Meter

CONFIG = preset("toy")
DATA = "cityscapes/val/labels=00 gta5/train/labels=11 weights=22"  # that it sees
CPU = torch.device("cpu")
SIZE = 40  # of the layer: its weights lie in the middle of the file


class Run:
    """A method, an optimizer and a meter as small as can be; its weights say how many steps it made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.meter = folder, Meter(every=5, device=CPU)
        self.method = nn.Linear(SIZE, SIZE)
        self.optimizer = torch.optim.AdamW(self.method.parameters())

    def save(self, step: int) -> None:
        nn.init.constant_(self.method.weight, step)
        save_checkpoint(self.folder, step, CONFIG, DATA, self.method, self.optimizer, self.meter)

    def resume(self) -> int:
        step = resume(self.folder, CONFIG, DATA, self.method, self.optimizer, self.meter)
        assert step == 0 or torch.all(self.method.weight == step)
        return step

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """After checkpoints of steps 2 and 4."""
    run = Run(tmp_path)
    run.save(2)
    run.save(4)
    return run


def empty(content: bytes) -> bytes:
    return b""


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def hole(content: bytes) -> bytes:
    """Zeros instead of weights, which `torch.load` would take."""
    middle = len(content) // 2
    return content[: middle - 100] + bytes(200) + content[middle + 100 :]


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize("how", [empty, cut, hole])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    run: Run, how: Callable[[bytes], bytes]
) -> None:
    assert run.files() == {CHECKPOINT, PREVIOUS}
    damage(run.folder / CHECKPOINT, how)
    damaged = (run.folder / CHECKPOINT).read_bytes()
    with pytest.warns(UserWarning, match="is damaged") as caught:
        assert Run(run.folder).resume() == 2
    message = str(caught[0].message)
    assert message.startswith(f"the checkpoint {run.folder / CHECKPOINT} is damaged (")
    assert message.endswith("kept as last.pt.broken: the run goes on after step 2")
    assert (run.folder / (CHECKPOINT + BROKEN)).read_bytes() == damaged

    with pytest.warns(UserWarning, match=r"last\.pt is missing: the run goes on after step 2"):
        assert run.resume() == 2
    run.save(6)
    run.save(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.resume() == 8
    assert run.files() == {CHECKPOINT, PREVIOUS, CHECKPOINT + BROKEN}


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(run: Run) -> None:
    damage(run.folder / CHECKPOINT, empty)
    damage(run.folder / PREVIOUS, cut)
    with pytest.warns(UserWarning, match=r"last\.pt is damaged .* 0 bytes.*previous\.pt.*anew"):
        assert run.resume() == 0
    assert run.files() == {CHECKPOINT + BROKEN, PREVIOUS + BROKEN}


def test_what_is_no_damage_is_refused_and_left_in_place(run: Run) -> None:
    other = CONFIG.replace({"seed": 7})
    with pytest.raises(TrainingError, match=r"belongs to run .*not to this run"):
        resume(run.folder, other, DATA, run.method, run.optimizer, run.meter)
    damage(run.folder / CHECKPOINT, empty)
    with pytest.raises(TrainingError, match=r"previous\.pt belongs to run"):
        resume(run.folder, other, DATA, run.method, run.optimizer, run.meter)
    torch.save([1, 2], run.folder / CHECKPOINT)
    with pytest.raises(TrainingError, match=r"last\.pt cannot be read .*delete it"):
        run.resume()
    assert {CHECKPOINT, PREVIOUS} <= run.files()


def test_a_checkpoint_of_other_data_is_refused_by_name_and_left_in_place(run: Run) -> None:
    repaired = DATA.replace("gta5/train/labels=11", "gta5/train/labels=33")
    with pytest.raises(OtherDataError, match=r"not the same are gta5/train/labels\. .*train anew"):
        resume(run.folder, CONFIG, repaired, run.method, run.optimizer, run.meter)
    assert run.files() == {CHECKPOINT, PREVIOUS}
    assert run.resume() == 4


# Of a `save_checkpoint`: the data must be durable before the name is.
CALLS = ["save", "fsync", "link", "replace", "replace", "fsync"]


class Killed(BaseException):
    """Nothing catches it, as nothing survives a SIGKILL."""


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("call", range(len(CALLS) + 1))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    run: Run, call: int, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, original: Callable) -> Callable:
        def wrapper(*arguments: object, **named: object) -> object:
            calls.append(name)
            if len(calls) == call + 1:
                raise Killed
            if name == "link" and not links:
                raise OSError("Operation not permitted")
            return original(*arguments, **named)

        return wrapper

    monkeypatch.setattr(torch, "save", counted("save", torch.save))
    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(os, "link", counted("link", os.link))
    monkeypatch.setattr(Path, "replace", counted("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # nor does `finally`
    try:
        run.save(6)
    except Killed:
        written = call == len(CALLS) - 1  # only the folder's names were not durable yet
        assert calls == CALLS[: call + 1]
    else:
        written = True
        assert calls == CALLS
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without links, `last.pt` is missing for a moment
        assert run.resume() == (6 if written else 4)


def test_the_meter_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, run = Meter(5, CPU), Run(tmp_path)
    values = torch.rand(6, generator=torch.Generator().manual_seed(0))
    for value in values[:4]:
        whole.add({"loss": value}, images=2)
        run.meter.add({"loss": value}, images=2)
    run.save(4)
    resumed = Run(tmp_path)
    resumed.resume()
    for value in values[4:]:
        whole.add({"loss": value}, images=2)
        resumed.meter.add({"loss": value}, images=2)
    assert resumed.meter.steps == 6
    assert resumed.meter.images == 12
    assert resumed.meter.read()["train/loss"] == whole.read()["train/loss"]


def test_a_checkpoint_of_an_earlier_version_has_no_meter(run: Run) -> None:
    state = torch.load(run.folder / CHECKPOINT, weights_only=True)
    del state["meter"]
    torch.save(state, run.folder / CHECKPOINT)
    assert run.resume() == 4
    assert run.meter.steps == 0
