"""What a sweep shows while it runs."""

import io
import math
import re
from dataclasses import dataclass
from datetime import datetime

import pytest
from rich.console import Console

from semidavil.config import preset
from sweeps.plan.pace import Pace, kind_of
from sweeps.run.events import Progress
from sweeps.show.progress import SweepProgress, clock_time

PARAMS = preset("toy").to_params()
KIND = kind_of(PARAMS)


@dataclass
class Cells:
    total: int


def progress(total: int = 4, concurrency: int = 2, terminal: bool = False) -> SweepProgress:
    console = Console(file=io.StringIO(), width=160, force_terminal=terminal)
    pace = Pace()
    pace.finished(KIND, 40.0)
    return SweepProgress(console, Cells(total), [(KIND, 1.0)] * total, concurrency, pace)


def shown(one: SweepProgress) -> str:
    file = one.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_time_left_counts_what_waits_and_what_runs() -> None:
    one = progress()
    assert one.seconds_left() == pytest.approx(4 * 40 / 2)
    one.start("a", PARAMS)
    one.update("a", Progress(75, 150))
    assert one.seconds_left() == pytest.approx(3.5 * 40 / 2)
    one.end("a", summary="mIoU 34.20", seconds=40.0)
    assert one.seconds_left() == pytest.approx(3 * 40 / 2)
    one.source.total = 2  # two are left to another sweep
    assert one.seconds_left() == pytest.approx(40)
    assert re.fullmatch(
        r"1/4  a  mIoU 34.20  40 s  \(60 s left, until \w+ \d\d:\d\d\)\n", shown(one)
    )


def test_a_cell_that_is_tried_again_counts_once() -> None:
    one = progress(total=1)
    one.start("a", PARAMS)
    one.update("a", Progress(75, 150))
    one.pause("a")
    assert one.seconds_left() == pytest.approx(40)
    one.start("a", PARAMS)
    one.end("a", error="ValueError: [broken]\nand more")
    assert shown(one) == "1/1  a  failed: ValueError: [broken]\n"
    assert (one.done, one.failed, one.seconds_left()) == (0, 1, 0.0)


def test_nothing_is_known_of_cells_like_none_before() -> None:
    console = Console(file=io.StringIO())
    assert math.isnan(SweepProgress(console, Cells(2), [(KIND, 1.0)] * 2, 2, Pace()).seconds_left())


def test_bars_show_the_phase_and_the_loss_of_each_running_cell() -> None:
    one = progress(terminal=True)
    with one:
        one.start("gta5-cityscapes/dlg/[0]/s0", PARAMS)
        one.update("gta5-cityscapes/dlg/[0]/s0", Progress(0, 0, "loading data"))
        one.bars.refresh()
        assert "loading data" in shown(one)
        one.update("gta5-cityscapes/dlg/[0]/s0", Progress(30, 150, "training", loss=1.234))
        one.bars.refresh()
    assert "gta5-cityscapes/dlg/[0]/s0" in shown(one)
    assert "30/150" in shown(one)
    assert "loss 1.234" in shown(one)
    assert ", until " in shown(one)
    one.taken("gta5-cityscapes/dlg/[0]/s0", "another sweep has begun it")
    assert len(one.bars.tasks) == 1, "its bar is gone"


def test_the_time_of_the_end() -> None:
    assert clock_time(25 * 3600.0, datetime(2026, 11, 26, 22, 30)) == ", until Fri 23:30"
    assert clock_time(math.nan, datetime(2026, 11, 26)) == ""
