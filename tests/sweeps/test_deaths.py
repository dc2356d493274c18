from pathlib import Path

import pytest

from sweeps.run.engine import cause_of_death, kernel_kills
from sweeps.run.events import Lost

RAY_DEATH = """Failure # 1 (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail:
Worker unexpectedly exits. Some common causes include: (1) the process was killed by the OOM killer due to"""


@pytest.mark.parametrize(
    ("text", "killed", "lost"),
    [
        (RAY_DEATH, 0, Lost("its worker process died", False)),
        (RAY_DEATH, 1, Lost("its worker process was killed: the machine was out of memory", True)),
        (
            "Failure # 1\n1 worker(s) were killed due to the node running low on memory.",
            0,
            Lost("its worker process was killed: the machine was out of memory", True),
        ),
        (
            "The actor died because its node has died. Node Id: 12",
            0,
            Lost("its worker process died with its machine", False),
        ),
        (
            "Traceback (most recent call last):\nImportError: no module at https://user:word@host\n",
            0,
            Lost("its worker failed: ImportError: no module at https://***@host", False),
        ),
    ],
)
def test_why_a_worker_died_is_told_from_rays_words_and_the_kernels_count(
    text: str, killed: int, lost: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "vmstat"
    monkeypatch.setattr("sweeps.run.engine.KILL_COUNTERS", (counter, tmp_path / "missing"))
    assert kernel_kills() == 0
    counter.write_text("oom_kill 3\noom_kill_other 100\n")
    before = kernel_kills()
    counter.write_text(f"oom_kill {3 + killed}\n")
    assert cause_of_death(text, kernel_kills() > before) == lost
