"""The report: one page of every figure and table, one of all runs, and one for each run.

No page asks another address for anything; the one script sorts and filters tables, and is not needed.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.drawn import Drawn, Shows, Table
from analysis.output import figure_bytes
from analysis.pages import render
from analysis.paper import Published
from analysis.reproduce import commands
from analysis.run_pages import FOLDER, page_of_all
from analysis.runs import ENVIRONMENT, Tracked
from analysis.stats import ALPHA, CLAIM_SEEDS, MARK_SEEDS
from analysis.style import benchmark_name, label
from analysis.tables.entries import Shown, short_caption, shown
from semidavil.marks import MEANING, mark
from semidavil.place import DRAW
from sweeps.track.credentials import redact

THUMBNAIL_DPI = 36
MOST_IDS = 24  # run ids that a section links; the page of all runs has the others


@dataclass(frozen=True)
class Section:
    """What the page shows under one heading.

    Attributes:
        name: its anchor.
        one: the figure, or the table of a section without one: both have the same title and verdicts.
        table: as it is shown.
        runs: the rows of the runs behind figure and table.
        files: that are beside the page.
    """

    name: str
    one: Shows
    figure: Drawn | None
    table: Table | None
    runs: pd.DataFrame
    files: Sequence[str]


def report(
    tracked: Tracked,
    figures: Mapping[str, Drawn],
    tables: Mapping[str, Table],
    left_out: Mapping[str, str],
    files: Mapping[str, Sequence[str]] | None = None,
    how: Shown | None = None,
) -> dict[str, bytes]:
    """The pages `report.html` and `runs.html`, UTF-8.

    Args:
        figures, tables: by name; what shares a name shares a section.
        left_out: by name, why there is nothing to show.
        files: by name, what was written beside the pages.
    """
    sections = []
    for name in dict.fromkeys([*figures, *tables]):
        both: list[Shows] = [of[name] for of in (figures, tables) if name in of]
        ids = {run_id for one in both for run_id in one.run_ids}
        table = shown(tables[name], how or Shown()) if name in tables else None
        runs = tracked.table[tracked.table["run_id"].isin(ids)].sort_values("run_id")
        beside = (files or {}).get(name, ())
        sections.append(Section(name, both[0], figures.get(name), table, runs, beside))
    page = render(
        "report.html.j2",
        sections=sections,
        left_out=left_out,
        unreadable=tracked.unreadable,
        facts=facts(tracked),
        marked=marked(tracked.table),
        published=published(tables),
        environments=environments(tracked.table),
        rules=(ALPHA, CLAIM_SEEDS, MARK_SEEDS),
        most=MOST_IDS,
        thumbnail_dpi=THUMBNAIL_DPI,
        draw=DRAW,
        folder=FOLDER,
        picture=_data_uri,
        commands=commands,
        short_caption=short_caption,
    )
    return {"report.html": page, "runs.html": page_of_all(tracked)}


def facts(tracked: Tracked) -> dict[str, str]:
    """What a reader wants to know of the runs before their numbers."""
    runs = tracked.table
    told = {"finished runs": f"{len(runs):,}", "seeds": f"{runs['seed'].nunique()}"}
    if len(tracked.open):
        counts = tracked.open["why"].value_counts().sort_index()
        told["without a result"] = ", ".join(f"{n:,} {why}" for why, n in counts.items())
    ended = pd.to_datetime(runs["ended"].max(), unit="ms")
    told["newest end of a run"] = f"{ended:%Y-%m-%d %H:%M} UTC"
    if "seconds" in runs:
        hours = runs.groupby("env/device")["seconds"].sum() / 3600
        spent = (f"{h:.1f} h on {d or 'an unknown device'}" for d, h in hours.items())
        told["training"] = "; ".join(spent)
    commits = [c[:8] for c in runs["env/commit"].unique() if c]
    more = f" and {len(commits) - 3} more" if len(commits) > 3 else ""
    told["commits"] = ", ".join(commits[:3]) + more
    told["presets"] = ", ".join(filter(None, runs["env/preset"].unique()))
    told["store"] = redact(tracked.uri)
    return {what: text for what, text in told.items() if text}


def marked(runs: pd.DataFrame) -> list[tuple[int, str, str]]:
    """How many runs generated data or the bundled CLIP have made: number, mark and what it means."""
    counts = Counter(map(mark, runs["benchmark"], runs["toy"], runs["vlm"]))
    return [(count, name, MEANING[name]) for name, count in counts.items() if name]


def _data_uri(figure: Drawn, kind: str, dpi: float | None = None) -> str:
    """An image of its own, so that the ids inside one SVG do not meet those of another."""
    encoded = base64.b64encode(figure_bytes(figure.figure, kind, dpi)).decode()
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{encoded}"


def published(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Every number that was both measured and published, once, by where it is printed if it is.

    The difference is that of real images alone, and nothing is subtracted from a bound.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for table in tables.values():
        if "published" not in table.numbers:  # of controls
            continue
        both = table.numbers[table.numbers["mean"].notna() & table.numbers["published"].notna()]
        for r in both.to_dict("records"):
            budget, value, kind = int(r["budget"]), r["published"], r["kind"]
            same = (r["benchmark"], budget, round(r["mean"], 6), value, kind == "bound")
            gap = r["minus_published"] if not r["caveat"] else float("nan")
            row = {
                "table": table.title, "benchmark": benchmark_name(r["benchmark"]), "caveat": r["caveat"],
                "variant": label(r["variant"]), "budget": budget, "measured": r["mean"],
                "text": Published("", "", budget, value, kind, "").text, "kind": kind,
                "difference": None if gap != gap else gap, "source": r["source"],
            }  # fmt: skip
            if rows.get(same, {"kind": ""})["kind"] != "exact":
                rows[same] = row
    return list(rows.values())


def environments(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The different environments of the runs with how many each has, most first."""
    columns = [f"env/{name}" for name in ENVIRONMENT]
    counted = runs.groupby(columns).size().sort_values(ascending=False)
    return [
        dict(zip(ENVIRONMENT, values, strict=True)) | {"runs": int(count)}
        for values, count in zip(counted.index.tolist(), counted, strict=True)
    ]
