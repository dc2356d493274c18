"""What planning costs: N cells against a store that holds N finished runs of them.

    python benchmarks/bench_planning.py [--cells 1000 3000 10000]

The runs are copies of one that is tracked in the usual way, with the params, tags and final metrics of
a real one. Prints seconds of one core, so that a busy machine disturbs them little, and the memory that
planning takes at its peak besides what has been imported.
"""

import argparse
import resource
import sqlite3
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from semidavil.benchmarks import CITYSCAPES_19
from semidavil.config import Config, preset
from sweeps.plan.cells import State, make_plan
from sweeps.plan.grids import GRIDS
from sweeps.track.outbox import Outbox
from sweeps.track.provenance import code_tags, owner_tags
from sweeps.track.runs import PREFIX
from sweeps.track.store import Store

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("tags", "params", "latest_metrics", "metrics")  # with a row per run


def track_one_run(store: Store, config: Config, folder: Path) -> str:
    tags = {"key": config.key(), "epoch": "1", **code_tags(ROOT), **owner_tags()}
    run_id = store.create_run(store.experiment_id("attention"), "cell", config, tags)
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    values = {f"iou/{name}": 50.0 for name in CITYSCAPES_19} | {"miou": 50.0, "seconds": 30.0}
    outbox = Outbox(store, run_id, 1, folder)
    training = {f"train/{n}": 0.5 for n in ("loss", "loss_sup", "loss_con", "lr", "a", "b", "c")}
    outbox.metrics(1, training | {f"val/{name}": value for name, value in values.items()})
    outbox.finish({f"final/{name}": value for name, value in values.items()}, artifacts)
    return run_id


def copy_run(database: Path, run_id: str, configs: list[Config]) -> None:
    """Copies of a run in SQL, which is some hundred times faster, one for each Config."""
    params = [config.to_params() for config in configs]
    keys = [config.key() for config in configs]
    with sqlite3.connect(database) as connection:
        for table in ("runs", *TABLES):
            rows = connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run_id,))
            columns = [column[0] for column in rows.description]
            copies = []
            for row in rows.fetchall():
                copy = dict(zip(columns, row, strict=True))
                for number in range(len(configs)):
                    copy["run_uuid"] = f"{number:032x}"
                    if table == "params":
                        copy["value"] = params[number][copy["key"]]
                    elif table == "tags" and copy["key"] == f"{PREFIX}key":
                        copy["value"] = keys[number]
                    copies.append(tuple(copy.values()))
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", copies)
    connection.close()


def write_runs(folder: Path, number: int) -> None:
    store, cells = Store(folder), cells_of(number)
    run_id = track_one_run(store, cells[0], folder)
    assert store.database is not None
    copy_run(store.database, run_id, cells[1:])


def cells_of(number: int) -> list[Config]:
    return GRIDS["attention"].cells(preset("toy"), seeds=range(-(-number // 24)))[:number]


def plan(folder: Path, number: int) -> str:
    """Lists, reads and matches, in a process that has done nothing else: its peak is theirs."""
    store, base = Store(folder), preset("toy")  # which imports PyTorch
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    cells = cells_of(number)
    listed = time.process_time() - start
    runs = store.runs()
    read = time.process_time() - start - listed
    planned = make_plan("attention", GRIDS["attention"].around(base), cells, runs)
    total = time.process_time() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert planned.counts() == {State.DONE: number}
    return (
        f"{number:6} cells: {total:5.1f} s ({listed:.1f} to list the cells, {read:.1f} to read the "
        f"runs, {total - listed - read:.1f} to match them), {more:.0f} MiB"
    )


def measure(number: int) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        for work in (write_runs, plan):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                told = process.submit(work, Path(scratch), number).result()
    return str(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", metavar="N", nargs="+", type=int, default=[1000, 3000, 10_000])
    for number in parser.parse_args().cells:
        print(measure(number), flush=True)


if __name__ == "__main__":
    main()
