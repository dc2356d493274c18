"""What every benchmark of speed returns: ours, what it is compared with, and the goal of their ratio."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    what: str  # "DyCE, forward and backward at (4, 19, 512, 512)"
    ours: float  # in `unit`
    reference: float  # of what it is compared with, measured in turn with ours
    against: str  # "torch's fused cross-entropy"
    unit: str = "ms"
    goal: float | None = None  # of ours / reference


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; a ratio beyond its goal is marked as missed."""
    lines = ["| what | ours | reference | against | ratio | goal |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = row.ours / row.reference if row.reference else float("nan")
        goal = "" if row.goal is None else f"{row.goal:.3g}"
        if row.goal is not None and not ratio <= row.goal:
            goal += " (missed)"
        amounts = f"{row.ours:.4g} {row.unit} | {row.reference:.4g} {row.unit}"
        lines.append(f"| {row.what} | {amounts} | {row.against} | {ratio:.3g} | {goal} |")
    return "\n".join(lines)


def print_rows(measure: Callable[[bool], list[Row]], about: str | None) -> None:
    """What a benchmark does as a command of its own: prints what it measures; `about` is its docstring."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    print(table(measure(parser.parse_args().quick)))
