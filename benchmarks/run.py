"""Every measurement of speed by one command: ours, what it is compared with, their ratio, and the machine.

    python benchmarks/run.py                              # all parts: an hour of one core
    python benchmarks/run.py --only losses steps
    python benchmarks/run.py --quick                      # small sizes and few repeats: do the parts run?
    python benchmarks/run.py --markdown                   # for README.md
    python benchmarks/run.py --before COMMIT              # only: this version against an earlier one

Each part is a file beside this one whose `measure(quick)` returns rows, and runs in a process of its own: one
that fails is named, and the others go on. Exit code: 0 unless a part has failed; a goal that is missed is no
failure.
"""

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from rows import Row, table

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("losses", "attentions", "counting", "steps", "host", "bench_figures")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=", ".join(PARTS))  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--markdown", action="store_true", help="plain Markdown")
    parser.add_argument("--before", metavar="COMMIT", help="measure this version against that one")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the parts' processes
    load = machine()
    print(load, flush=True)
    rows: list[Row] = []
    failed = []
    parts = ["before"] if options.before else options.only
    given = (options.before,) if options.before else ()
    for name in parts:
        start = time.perf_counter()
        found = in_new_process(name, (*given, options.quick))
        seconds = time.perf_counter() - start
        if isinstance(found, str):
            failed.append(name)
            print(f"{name} failed after {seconds:.0f} s:\n{found}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: {len(found)} rows in {seconds:.0f} s", flush=True)
        rows += found
    print()
    print(table(rows) if options.markdown else "", end="\n" if options.markdown else "")
    if not options.markdown:
        print_rich(rows)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def in_new_process(part: str, arguments: tuple) -> list[Row] | str:
    """The rows of a part, or the traceback of its failure."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(measure_part, part, arguments).result()
    except Exception:  # also of a process that died
        return traceback.format_exc()


def measure_part(part: str, arguments: tuple) -> list[Row]:
    measure: Callable[..., list[Row]] = import_module(part).measure
    return measure(*arguments)


def machine() -> str:
    """The processor, cores that this process may use, versions, and what else the machine does."""
    sys.path.insert(0, str(ROOT))
    from semidavil.machine import available_cpus
    from sweeps.track.provenance import device_name

    one, five, _ = os.getloadavg()
    return (
        f"{device_name()}, {available_cpus()} cores, Python {platform.python_version()}, PyTorch "
        f"{version('torch')}, load at the start {one:.1f} ({five:.1f} over five minutes), "
        f"{time.strftime('%Y-%m-%d')}"
    )


def print_rich(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None)
    for name in ("what", "ours", "reference", "against", "ratio", "goal"):
        shown.add_column(name, justify="left" if name in ("what", "against") else "right")
    for row in rows:
        cells = [cell.strip() for cell in table([row]).splitlines()[-1].strip("| ").split(" | ")]
        missed = row.goal is not None and "missed" in cells[-1]
        shown.add_row(*cells, style="red" if missed else "")
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


if __name__ == "__main__":
    sys.exit(main())
