"""Trains run after run in one process, as a sweep's worker does; prints the resident memory after each."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from semidavil.config import preset
from semidavil.memory import bound_memory, trim_memory
from semidavil.train import train

RESIDENT = "resident megabytes:"  # each run also prints lines of its own
ARENAS = 16  # that MALLOC_ARENA_MAX allows the process that runs this


def main(data_root: str, cache_dir: str, runs: int, bounded: bool) -> None:
    if bounded:
        bound_memory()
    occupy_arenas()
    settings = {
        "data.toy": False, "data.budget": 4, "training.steps": 6, "training.warmup_steps": 0,
        "runtime.data_root": data_root, "runtime.cache_dir": cache_dir, "runtime.device": "cpu",
    }  # fmt: skip
    config = preset("toy", settings)
    for seed in range(runs):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(train, config.replace({"seed": seed})).result()
        if bounded:
            trim_memory()
        print(RESIDENT, resident_mb(), flush=True)


def occupy_arenas() -> None:
    """Threads that live on and have an arena each, as Ray's have in a worker: later ones must share."""
    ready = threading.Barrier(ARENAS + 1)

    def live_on() -> None:
        ready.wait()
        threading.Event().wait()

    for _ in range(ARENAS):
        threading.Thread(target=live_on, daemon=True).start()
    ready.wait()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "bounded")
