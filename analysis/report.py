"""One self-contained HTML page with every figure and table: no script, font or image from elsewhere."""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.drawn import Drawn, Table
from analysis.output import figure_bytes
from analysis.runs import ENVIRONMENT, Tracked, command
from analysis.stats import ALPHA
from analysis.style import benchmark_name, label
from semidavil.marks import MEANING, mark

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Section:
    """What the page shows under one heading.

    Attributes:
        name: its anchor.
        picture: the figure as a data URI; empty for a table alone.
        run_ids: of the runs behind figure and table.
    """

    name: str
    title: str
    figure: Drawn | None
    table: Table | None
    picture: str
    run_ids: tuple[str, ...]
    command: str
    missing: str


def report(
    tracked: Tracked,
    figures: Mapping[str, Drawn],
    tables: Mapping[str, Table],
    left_out: Mapping[str, str],
) -> bytes:
    """The page, UTF-8.

    Args:
        figures, tables: by name; what shares a name shares a section.
        left_out: by name, why there is nothing to show.
    """
    names = list(dict.fromkeys([*figures, *tables]))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        sections=[_section(name, figures.get(name), tables.get(name)) for name in names],
        left_out=left_out,
        runs=len(tracked.table),
        marked=marked(tracked.table),
        seeds=int(tracked.table["seed"].nunique()),
        findings=[line for name, table in tables.items() for line in findings(table)],
        published=published(tables),
        environments=environments(tracked.table),
        alpha=ALPHA,
    )
    return page.encode()


def marked(runs: pd.DataFrame) -> list[tuple[int, str, str]]:
    """How many runs generated data or the bundled CLIP have made: number, mark and what it means."""
    counts = Counter(map(mark, runs["benchmark"], runs["toy"], runs["vlm"]))
    return [(count, name, MEANING[name]) for name, count in counts.items() if name]


def _section(name: str, figure: Drawn | None, table: Table | None) -> Section:
    one = figure or table
    assert one is not None
    ids = {*(figure.run_ids if figure else ()), *(table.run_ids if table else ())}
    return Section(
        name=name,
        title=one.title,
        figure=figure,
        table=table,
        picture=_data_uri(figure) if figure else "",
        run_ids=tuple(sorted(ids)),
        command=command(one.grid),
        missing=one.missing,
    )


def _data_uri(figure: Drawn) -> str:
    """An image of its own, so that the ids inside one SVG do not meet those of another."""
    encoded = base64.b64encode(figure_bytes(figure.figure, "svg")).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def findings(table: Table) -> list[str]:
    """In words, what the tests of a table say; nothing where none is significant, or was made."""
    if "mark" not in table.numbers:  # of controls
        return []
    marked = table.numbers[table.numbers["mark"] == "best"]
    told = []
    for (benchmark, variant), here in marked.groupby(["benchmark", "variant"], sort=False):
        budgets = ", ".join(str(int(b)) for b in here["budget"])
        caveat = f" ({here['caveat'].iloc[0]})" if here["caveat"].iloc[0] else ""
        told.append(
            f"{benchmark_name(str(benchmark))}{caveat}: {label(str(variant))} is above every other row of "
            f"“{table.title}” at {budgets} labels."
        )
    return told


def published(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Every cell that was both measured and published, with the difference."""
    rows: list[dict[str, Any]] = []
    for table in tables.values():
        if "published" not in table.numbers:  # of controls
            continue
        both = table.numbers[table.numbers["mean"].notna() & table.numbers["published"].notna()]
        rows += [
            {"table": table.title, "benchmark": benchmark_name(r["benchmark"]), "caveat": r["caveat"],
             "variant": label(r["variant"]), "budget": int(r["budget"]), "measured": r["mean"],
             "published": r["published"], "difference": r["minus_published"], "kind": r["kind"],
             "source": r["source"]}
            for _, r in both.iterrows()
        ]  # fmt: skip
    return rows


def environments(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The different environments of the runs with how many each has, most first."""
    columns = [f"env/{name}" for name in ENVIRONMENT]
    counted = runs.groupby(columns).size().sort_values(ascending=False)
    return [
        dict(zip(ENVIRONMENT, values, strict=True)) | {"runs": int(count)}
        for values, count in zip(counted.index.tolist(), counted, strict=True)
    ]
