"""What a sweep prints before and after: the plan, the results, what has failed."""

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.data.benchmarks import BENCHMARKS
from sweeps.plan.cells import Cell, FailedCell, Plan, State, made_by

SHORT_SECONDS, SHORT_MINUTES = 100, 100  # shorter times are written in the smaller unit
SHORT_ID = 8  # characters of a run's id that are shown

COLOURS = {
    State.DONE: "green",
    State.TODO: "default",
    State.INTERRUPTED: "yellow",
    State.FAILED: "red",
    State.DIVERGED: "red",
    State.ELSEWHERE: "cyan",
}


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`; `?` if it is not known."""
    if math.isnan(seconds):
        return "?"
    if seconds < SHORT_SECONDS:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < SHORT_MINUTES else f"{minutes / 60:.1f} h"


def print_plan(console: Console, plan: Plan, concurrency: int, gpus: float = 0.0) -> None:
    """Every cell: its name, how it differs from the baseline, its state, its time."""
    table = Table(title=f"grid {plan.grid_name}, {len(plan.cells)} cells", title_justify="left")
    table.add_column("cell", overflow="fold")
    table.add_column("differs by", overflow="fold")
    table.add_column("state", overflow="fold")
    table.add_column("time", justify="right")
    for cell in plan.cells:
        table.add_row(
            escape(cell.name),
            escape(plan.grid.difference(cell.config) or "(baseline)"),
            f"[{COLOURS[cell.state]}]{cell.state}[/] {escape(_detail(plan, cell))}",
            _time(cell),
        )
    console.print(table)
    console.print(summary(plan, concurrency, gpus), highlight=False, soft_wrap=True)


def _detail(plan: Plan, cell: Cell) -> str:
    run = cell.run
    if run is None:
        return ""
    if cell.state is State.DONE:
        by = made_by(run)
        score = BENCHMARKS[cell.config.data.benchmark].score
        other = "" if by == plan.grid_name else f", by {by}"
        return f"{score} {_score(cell):.2f} (run {run.run_id[:SHORT_ID]}{other})"
    if cell.state is State.ELSEWHERE:
        return f"on {run.tags.get('host')}, process {run.tags.get('pid')}"
    if cell.state is State.INTERRUPTED:
        return f"after step {run.progress.step}"
    return run.tags.get("reason", "")


def _score(cell: Cell) -> float:
    return cell.run.score if cell.run else math.nan


def _time(cell: Cell) -> str:
    if cell.state is State.DONE and cell.run is not None:
        return duration(cell.run.metrics.get("final/seconds", math.nan))
    return "?" if math.isnan(cell.estimate) else f"~ {duration(cell.estimate)}"


def summary(plan: Plan, concurrency: int, gpus: float = 0.0) -> str:
    """`24 cells: 3 done, 21 to do; 21 to run, about 5 min, 2 at a time`.

    Args:
        gpus: of each run; where there are some, GPU-hours are shown too.
    """
    if not plan.cells:
        return "no cell can run here"
    counts = plan.counts()
    states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    text = f"{len(plan.cells)} cells: {states}"
    if not plan.waiting:
        return f"{text}; nothing to run"
    seconds = plan.seconds_left(concurrency)
    when = (
        "time unknown until a run like them has finished on this machine"
        if math.isnan(seconds)
        else f"about {duration(seconds)}"
    )
    if gpus and not math.isnan(seconds):
        when += f" and {plan.gpu_hours(gpus):.3g} GPU-hours"
    return f"{text}; {len(plan.waiting)} to run, {when}, {concurrency} at a time"


def print_results(console: Console, plan: Plan) -> None:
    """Variant x budget, one table per benchmark: its score in per cent, mean and spread over seeds."""
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for cell in plan.cells:
        if cell.state is State.DONE and not math.isnan(_score(cell)):
            values[_place(plan, cell)].append(_score(cell))
    places = [_place(plan, cell) for cell in plan.cells]
    for benchmark in dict.fromkeys(place[0] for place in places):
        of_benchmark = [place for place in places if place[0] == benchmark]
        budgets = sorted({budget for _, _, budget in of_benchmark})
        known = BENCHMARKS[benchmark]
        what = "target images" if known.kind == "images" else "scans"
        console.print(
            f"{benchmark}: {known.score} (%) by number of labelled {what}", highlight=False
        )
        table = Table()
        table.add_column("")
        for budget in budgets:
            table.add_column(str(budget), justify="right")
        for variant in dict.fromkeys(variant for _, variant, _ in of_benchmark):
            row = [values.get((benchmark, variant, budget), []) for budget in budgets]
            table.add_row(escape(variant), *(_mean(one) for one in row))
        console.print(table)


def _place(plan: Plan, cell: Cell) -> tuple[str, str, int]:
    """Where a cell's score stands in the tables: benchmark, row, column."""
    data = cell.config.data
    return data.benchmark, plan.grid.variant(cell.config), data.budget


def _mean(values: Sequence[float]) -> str:
    """`34.20`, or `34.20 ± 0.51 (n=3)`: sample standard deviation over seeds."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (n={len(values)})"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(header)
    lines.writerows(rows)
    return file.getvalue()


def plan_csv(plan: Plan) -> str:
    """One line a cell: what it is, how it differs from the baseline, its state, run and score."""
    rows: list[tuple[str, ...]] = []
    for cell in plan.cells:
        about = cell.name, plan.grid.difference(cell.config), cell.config.key(), cell.state.value
        run = cell.run
        if run is None:
            rows.append((*about, "", "", "", "", ""))
            continue
        seconds = run.metrics.get("final/seconds", math.nan)
        done = (f"{run.score:.4f}", f"{seconds:.1f}") if cell.state is State.DONE else ("", "")
        rows.append((*about, *done, run.run_id, made_by(run), run.tags.get("reason", "")))
    header = (
        "cell",
        "differs_by",
        "key",
        "state",
        "score",
        "seconds",
        "run_id",
        "made_by",
        "reason",
    )
    return csv_text(header, rows)


def print_failures(console: Console, failed: Iterable[FailedCell], retry_command: str = "") -> None:
    """Cells that were given up, each with its reason and log."""
    for cell in failed:
        console.print(f"[red]failed[/] {escape(cell.name)}: {escape(cell.reason)}", soft_wrap=True)
        if cell.log:
            console.print(f"       {escape(cell.log)}", soft_wrap=True, highlight=False)
    if retry_command:
        console.print(f"retry them: {escape(retry_command)}", soft_wrap=True, highlight=False)
