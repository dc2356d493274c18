"""What a sweep prints before and after: the plan, the results, what has failed."""

import csv
import io
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.marks import TOY, mark
from sweeps.plan.cells import Cell, FailedCell, Plan, State
from sweeps.plan.needs import left_out

COLOURS = {
    State.DONE: "green",
    State.DONE_ON_OTHER: "magenta",
    State.BEGUN_ON_OTHER: "magenta",
    State.TODO: "default",
    State.INTERRUPTED: "yellow",
    State.FAILED: "red",
    State.DIVERGED: "red",
    State.ELSEWHERE: "cyan",
    State.LACKING: "red",
}

WHOLE_NAME = 50  # characters of a run's name that a terminal has room for


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`; `?` if it is not known."""
    if math.isnan(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _without_box(title: str) -> Table:
    """Eighty columns hold what lines between columns would break."""
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def print_plan(
    console: Console, plan: Plan, preset: str, concurrency: int, gpus: float = 0.0
) -> None:
    """Every cell: its name, how it differs from the baseline, its state, its time."""
    marks = {mark_of(cell.config) for cell in plan.cells}
    marks -= {"", TOY}  # toy presets are called so
    count = f"{len(plan.cells)} run{'s' * (len(plan.cells) != 1)}"
    what = [f"grid {plan.grid_name}", f"preset {preset}", count]
    title = ", ".join([*what, *sorted(marks)])
    if not plan.cells:
        console.print(f"{title}: {summary(plan, concurrency, gpus)}")
        return
    differences = [plan.grid.difference(cell.config) for cell in plan.cells]
    variants = [plan.grid.variant(cell.config) for cell in plan.cells]
    pairs = zip(variants, differences, strict=True)
    # Names are for copying: they stay whole where they may.
    whole = max(len(cell.name) for cell in plan.cells) <= WHOLE_NAME
    # Those that list every setting would take five lines each.
    shortened = max(map(len, variants)) > WHOLE_NAME
    # In most grids the names say it: `vlga` is `fusion=vlga`.
    told = not shortened and all(
        difference.partition("=")[2] in ("", variant) for variant, difference in pairs
    )
    table = _without_box(title)
    table.add_column("run", no_wrap=whole or shortened, overflow="fold")
    if not told:
        table.add_column("differs by", overflow="fold")
    table.add_column("state", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for cell, variant, difference in zip(plan.cells, variants, differences, strict=True):
        table.add_row(
            escape(cell.name.replace(variant, "...") if shortened else cell.name),
            *([] if told else [escape(difference or "(baseline)")]),
            f"[{COLOURS[cell.state]}]{cell.state}[/] {escape(_detail(plan, cell))}",
            _time(cell),
        )
    console.print(table)
    if shortened:
        console.print(escape(f"whole names, as the first: {plan.cells[0].name}"))
    console.print(summary(plan, concurrency, gpus))


def print_grids(
    console: Console, plans: Iterable[Plan], preset: str, concurrency: int, gpus: float
) -> None:
    """All grids: what is left of each, and what it asks."""
    table = _without_box(f"grids, preset {preset}")
    table.show_header = False
    for plan in plans:
        text = f"{summary(plan, concurrency, gpus)}\n{_unwrapped(plan.grid.about)}\n"
        table.add_row(f"[bold]{escape(plan.grid_name)}", escape(text))
    console.print(table)


def _unwrapped(about: str) -> str:
    """A grid's docstring, wrapped for an editor, a line for each sentence or item that begins one."""
    return re.sub(r"(?<!\n)\n(?!\n|\w+:|[ *-])", " ", about)


def _detail(plan: Plan, cell: Cell) -> str:
    run = cell.run
    if cell.state is State.LACKING:
        return f"without {', '.join(lack.what for lack in cell.lacks)}"
    if run is None:
        return ""
    if cell.state in (State.DONE, State.DONE_ON_OTHER):
        score = BENCHMARKS[cell.config.data.benchmark].score
        other = "" if run.made_by == plan.grid_name else f", by {run.made_by}"
        text = f"{score} {run.score:.2f}, run {run.run_id[:8]}{other}"
        return f"{text}; not the same: {', '.join(cell.changed)}" if cell.changed else text
    if cell.state is State.ELSEWHERE:
        return f"on {run.tags.get('host')}, process {run.tags.get('pid')}"
    if cell.state is State.INTERRUPTED:
        return f"after step {run.progress.step}"
    if cell.state is State.BEGUN_ON_OTHER:
        return f"after step {run.progress.step}; not the same: {', '.join(cell.changed)}"
    if run.status == "FINISHED":
        return "its score is undefined"
    return run.tags.get("reason", "")


def _time(cell: Cell) -> str:
    if cell.state is State.DONE and cell.run is not None:
        return duration(cell.run.metrics.get("final/seconds", math.nan))
    return "?" if math.isnan(cell.estimate) else f"~ {duration(cell.estimate)}"


def summary(plan: Plan, concurrency: int, gpus: float = 0.0) -> str:
    """`24 runs: 3 done, 21 to train (1 failed), 2 at a time, about 5 min`; `gpus` are those of each run."""
    if not plan.cells:
        return "nothing of it can run here"
    waiting = Counter(cell.state for cell in plan.waiting)
    others, total = plan.counts() - waiting, f"{len(plan.cells)} run{'s' * (len(plan.cells) > 1)}"
    if others[State.DONE] == len(plan.cells):
        return f"{total}, all done"
    if not waiting:
        return f"{total}: {_counted(others)}"
    again = _counted(waiting - Counter({State.TODO: waiting[State.TODO]}))
    to_train = f"to train ({again})" if again else "to train"
    text = f"{total}: {_counted(others)}, {waiting.total()}" if others else total
    seconds, gpu_seconds = plan.seconds_left(concurrency), plan.seconds_left(1) * gpus
    return f"{text} {to_train}, {expected(seconds, gpu_seconds, concurrency)}"


def _counted(states: Counter[State]) -> str:
    """`3 done, 1 running elsewhere`."""
    return ", ".join(f"{states[state]} {state}" for state in State if states[state])


def expected(seconds: float, gpu_seconds: float, concurrency: int) -> str:
    """`2 at a time, about 5 min and 0.2 GPU-hours`; NaN is not known before a run like them has finished."""
    if math.isnan(seconds):
        text = "time unknown: none like them has finished here"
    else:
        text = f"about {duration(seconds)}"
        text += f" and {gpu_seconds / 3600:.3g} GPU-hours" if gpu_seconds else ""
    return f"{concurrency} at a time, {text}"


def lacking_lines(plans: Iterable[Plan]) -> list[str]:
    """Which runs are left out for want of what is not here, and what to do."""
    # A cell that several grids share counts once.
    cells = {cell.config.key(): (cell.name, cell.lacks) for plan in plans for cell in plan.left_out}
    return left_out(cells.values())


def mark_of(config: Config) -> str:
    """What its numbers are marked with; see `semidavil.marks`."""
    return mark(config.data.benchmark, config.data.toy, config.model.vlm)


def other_data(cells: Sequence[Cell], command: str) -> str:
    """What to say of cells whose runs saw other data than are here now; `command` runs them again."""
    changed = sorted({name for cell in cells for name in cell.changed})
    return (
        f"{len(cells)} runs are of other data than are here now (not the same: {', '.join(changed)}) and "
        f"are not done. Bring the data back, or train them again: {command}"
    )


def print_results(console: Console, plan: Plan) -> None:
    """Variant x budget, one table per benchmark: its score in per cent, mean and spread over seeds."""
    scores: dict[tuple[str, str, int], list[float]] = defaultdict(list)  # by benchmark, row, column
    for cell in plan.cells:
        data, variant = cell.config.data, plan.grid.variant(cell.config)
        if len(variant) > WHOLE_NAME:
            variant = plan.grid.difference(cell.config) or "(baseline)"
        of_place = scores[data.benchmark, variant, data.budget]
        if cell.state is State.DONE and cell.run:
            of_place.append(cell.run.score)
    for name in dict.fromkeys(benchmark for benchmark, _, _ in scores):
        benchmark = BENCHMARKS[name]
        what = "target images" if benchmark.kind == "images" else "scans"
        marks = dict.fromkeys(
            f" ({mark_of(cell.config)})"
            for cell in plan.cells
            if cell.config.data.benchmark == name and mark_of(cell.config)
        )
        console.print(f"{name}{''.join(marks)}: {benchmark.score} (%) by number of labelled {what}")
        budgets = sorted({budget for of, _, budget in scores if of == name})
        table = Table("")
        for budget in budgets:
            table.add_column(str(budget), justify="right")
        for variant in dict.fromkeys(variant for of, variant, _ in scores if of == name):
            row = [_mean(scores.get((name, variant, budget), [])) for budget in budgets]
            table.add_row(escape(variant), *row)
        console.print(table)


def _mean(values: Sequence[float]) -> str:
    """`34.20`, or `34.20 ± 0.51 (n=3)`: sample standard deviation over seeds."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (n={len(values)})"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(header)
    lines.writerows(rows)
    return file.getvalue()


def plan_csv(plan: Plan) -> str:
    """One line a cell: what it is, how it differs from the baseline, its state, run and score."""
    rows: list[list[str]] = []
    for cell in plan.cells:
        row = [cell.name, plan.grid.difference(cell.config), cell.config.key(), cell.state.value]
        if (run := cell.run) is None:
            row += [""] * 5
        else:
            seconds = run.metrics.get("final/seconds", math.nan)
            done = cell.state is State.DONE
            row += [f"{run.score:.4f}", f"{seconds:.1f}"] if done else ["", ""]
            row += [run.run_id, run.made_by, run.tags.get("reason", "")]
        rows.append(row)
    header = "cell differs_by key state score seconds run_id made_by reason"
    return csv_text(header.split(), rows)


def print_failures(console: Console, failed: Iterable[FailedCell], retry_command: str) -> None:
    """Cells that were given up, each with its reason and log."""
    for cell in failed:
        console.print(f"[red]failed[/] {escape(cell.name)}: {escape(cell.reason)}")
        if cell.log:
            console.print(f"       {escape(cell.log)}")
    console.print(f"retry them: {escape(retry_command)}")
