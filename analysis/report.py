"""The report: one page of every figure and table, one of all runs, and one for each run.

No page asks another address for anything; the one script sorts and filters tables, and is not needed.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.drawn import Drawn, Table
from analysis.output import figure_bytes
from analysis.reproduce import commands
from analysis.run_pages import COLUMNS, FOLDER, POLICY, SCRIPT, mlflow_address, run_rows
from analysis.runs import ENVIRONMENT, Tracked
from analysis.stats import ALPHA, CLAIM_SEEDS, MARK_SEEDS
from analysis.style import benchmark_name, label
from analysis.tables.entries import Shown, short_caption, shown
from semidavil.marks import MEANING, mark
from semidavil.place import DRAW
from sweeps.track.credentials import redact

HERE = Path(__file__).parent
CSS = (HERE / "report.css").read_text(encoding="utf-8")
THUMBNAIL_DPI = 36
MOST_IDS = 24  # run ids that a section links; the page of all runs has the others


@dataclass(frozen=True)
class Section:
    """What the page shows under one heading.

    Attributes:
        name: its anchor.
        picture, thumbnail: the figure as data URIs; empty for a table alone.
        width: of the picture at most, in pixels: one that is a column wide stays small.
        about: the table's caption.
        run_ids: of the runs behind figure and table.
        commands: that make these runs once more.
        files: that are beside the page.
        verdicts: which variant is best, a sentence each.
    """

    name: str
    title: str
    figure: Drawn | None
    table: Table | None
    about: str
    picture: str
    thumbnail: str
    width: int
    run_ids: tuple[str, ...]
    commands: list[str]
    missing: str
    files: tuple[str, ...]
    verdicts: tuple[str, ...]


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
    names = list(dict.fromkeys([*figures, *tables]))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    common = {"css": Markup(CSS), "script": Markup(SCRIPT), "policy": POLICY, "folder": FOLDER}
    sections = [
        _section(
            tracked,
            name,
            figures.get(name),
            tables.get(name),
            (files or {}).get(name, ()),
            how or Shown(),
        )
        for name in names
    ]
    template = environment.from_string((HERE / "report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        **common,
        sections=sections,
        left_out=left_out,
        unreadable=tracked.unreadable,
        facts=facts(tracked),
        marked=marked(tracked.table),
        published=published(tables),
        environments=environments(tracked.table),
        rules=(ALPHA, CLAIM_SEEDS, MARK_SEEDS),
        most=MOST_IDS,
        draw=DRAW,
    )
    runs = environment.from_string((HERE / "runs.html.j2").read_text(encoding="utf-8")).render(
        **common,
        columns=COLUMNS,
        rows=run_rows(tracked),
        links={
            run: mlflow_address(tracked.uri, experiment, run)
            for table in (tracked.table, tracked.open)
            if len(table)
            for run, experiment in zip(table["run_id"], table["experiment_id"], strict=True)
        },
        finished=set(tracked.table["run_id"]),
    )
    return {"report.html": page.encode(), "runs.html": runs.encode()}


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
        told["training"] = "; ".join(
            f"{h:.1f} h on {d or 'an unknown device'}" for d, h in hours.items()
        )
    commits = [c[:8] for c in runs["env/commit"].unique() if c]
    told["commits"] = ", ".join(commits[:3]) + (
        f" and {len(commits) - 3} more" if len(commits) > 3 else ""
    )
    told["presets"] = ", ".join(filter(None, runs["env/preset"].unique()))
    told["store"] = redact(tracked.uri)
    return {what: text for what, text in told.items() if text}


def marked(runs: pd.DataFrame) -> list[tuple[int, str, str]]:
    """How many runs generated data or the bundled CLIP have made: number, mark and what it means."""
    counts = Counter(map(mark, runs["benchmark"], runs["toy"], runs["vlm"]))
    return [(count, name, MEANING[name]) for name, count in counts.items() if name]


def _section(
    tracked: Tracked,
    name: str,
    figure: Drawn | None,
    table: Table | None,
    files: Sequence[str],
    how: Shown,
) -> Section:
    one = figure or table
    assert one is not None
    ids = {*(figure.run_ids if figure else ()), *(table.run_ids if table else ())}
    runs = tracked.table[tracked.table["run_id"].isin(ids)]
    worded = shown(table, how) if table else None
    return Section(
        name=name,
        title=one.title,
        figure=figure,
        table=worded,
        about=short_caption(worded) if worded else "",
        picture=_data_uri(figure, "svg") if figure else "",
        thumbnail=_data_uri(figure, "png", THUMBNAIL_DPI) if figure else "",
        width=round(140 * figure.figure.get_figwidth()) if figure else 0,
        run_ids=tuple(sorted(ids)),
        commands=commands(runs, one.grid),
        missing=one.missing,
        files=tuple(files),
        verdicts=one.verdicts,
    )


def _data_uri(figure: Drawn, kind: str, dpi: float | None = None) -> str:
    """An image of its own, so that the ids inside one SVG do not meet those of another."""
    encoded = base64.b64encode(figure_bytes(figure.figure, kind, dpi)).decode()
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{encoded}"


def published(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Every number that was both measured and published, once.

    The difference is that of real images alone, and nothing is subtracted from a bound.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for table in tables.values():
        if "published" not in table.numbers:  # of controls
            continue
        both = table.numbers[table.numbers["mean"].notna() & table.numbers["published"].notna()]
        for r in both.to_dict("records"):
            same = (
                r["benchmark"],
                int(r["budget"]),
                round(r["mean"], 6),
                r["published"],
                r["kind"],
            )
            gap = r["minus_published"] if not r["caveat"] else float("nan")
            rows.setdefault(
                same,
                {"table": table.title, "benchmark": benchmark_name(r["benchmark"]), "caveat": r["caveat"],
                 "variant": label(r["variant"]), "budget": int(r["budget"]), "measured": r["mean"],
                 "published": r["published"], "difference": None if gap != gap else gap, "kind": r["kind"],
                 "source": r["source"]},
            )  # fmt: skip
    return list(rows.values())


def environments(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The different environments of the runs with how many each has, most first."""
    columns = [f"env/{name}" for name in ENVIRONMENT]
    counted = runs.groupby(columns).size().sort_values(ascending=False)
    return [
        dict(zip(ENVIRONMENT, values, strict=True)) | {"runs": int(count)}
        for values, count in zip(counted.index.tolist(), counted, strict=True)
    ]
