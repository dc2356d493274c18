"""A page of all runs that can be sorted and filtered, and a page for each of them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import style
from analysis.pages import render
from analysis.reproduce import plugin_options
from analysis.runs import ENVIRONMENT, OF_A_RUN, Tracked, default_settings
from semidavil.config import is_read
from semidavil.place import command

FOLDER = "runs"
UI = "http://127.0.0.1:5000"  # where `mlflow ui` shows a local store
COLUMNS = {"benchmark": "Benchmark", "variant": "Variant", "budget": "Labels", "seed": "Seed",
           "score": "Score", "state": "State", "steps": "Steps", "minutes": "Minutes", "preset": "Preset",
           "device": "Device", "commit": "Commit", "ended": "Ended (UTC)"}  # fmt: skip
# Of these, those that are set from the left.
TEXTS = ("benchmark", "variant", "state", "preset", "device")


def mlflow_address(uri: str, run: Mapping[str, Any]) -> str:
    """The run in MLflow's own pages; of a local store, where `mlflow ui` shows them."""
    place = uri.rstrip("/") if uri.startswith(("http://", "https://")) else UI
    return f"{place}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"


def page_of_all(tracked: Tracked) -> bytes:
    """Finished runs first; these have a page of their own."""
    rows = run_rows(tracked)
    finished = set(tracked.table["run_id"])
    return render("runs.html.j2", columns=COLUMNS, texts=TEXTS, rows=rows, finished=finished,
                  folder=FOLDER)  # fmt: skip


def run_rows(tracked: Tracked) -> list[dict[str, Any]]:
    """What the page of all runs shows of each, finished ones first."""
    rows = []
    for table in (tracked.table, tracked.open):
        for run in (tracked.rows[run_id] for run_id in table.get("run_id", ())):
            score = run.get("miou", float("nan"))
            score = run.get("dice", score) if score != score else score
            rows.append(
                {"run_id": run["run_id"], "benchmark": style.benchmark_name(run["benchmark"]),
                 "variant": f"{run['experiment']}: {_variant(run)}", "budget": run["budget"],
                 "seed": int(run["seed"]), "score": "" if score != score else f"{score:.2f}",
                 "state": run["why"] or "finished", "steps": f"{int(run['steps']):,}",
                 "minutes": f"{run['seconds'] / 60:.1f}" if run.get("seconds", 0) > 0 else "",
                 "preset": run["env/preset"], "device": run["env/device"], "commit": run["env/commit"][:8],
                 "ended": _time(run["ended"]), "link": mlflow_address(tracked.uri, run)}
            )  # fmt: skip
    return rows


def _variant(run: Mapping[str, Any]) -> str:
    return ", ".join(str(run[name]) for name in ("method", "fusion", "loss", "captions"))


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return str(pd.Timestamp(milliseconds, unit="ms"))[:16]


def run_pages(tracked: Tracked, folder: Path) -> dict[str, bytes]:
    """The page of each finished run that has none in `folder` yet: what is finished does not change."""
    there = {path.stem for path in folder.glob("*.html")} if folder.exists() else set()
    new = tracked.table[~tracked.table["run_id"].isin(there)]
    defaults = default_settings()
    told = {*defaults, *OF_A_RUN}
    metrics = [c for c in map(str, new) if c not in told and not c.startswith(("env/", "runtime."))]
    return {
        f"{run_id}.html": _page(tracked.rows[run_id], defaults, metrics, tracked.uri)
        for run_id in new["run_id"]
    }


def _page(run: Mapping[str, Any], defaults: dict[str, Any], metrics: list[str], uri: str) -> bytes:
    known = {m: v for m in metrics if isinstance(v := run.get(m), float) and v == v}
    parts = {
        "The run": {
            "grids": ", ".join(run["grids"]), "ended (UTC)": _time(run["ended"]), "data": run["data"]
        },
        "Numbers": {name: f"{value:.4g}" for name, value in known.items()},
        "Settings that differ from the paper's": {
            s: style.setting_text(run[s])
            for s, v in defaults.items()
            if run[s] != v and is_read(s, run["method"])
        },
        "Where it was made": {n: str(run[f"env/{n}"]) for n in ENVIRONMENT if run[f"env/{n}"]},
    }  # fmt: skip
    return render(
        "run.html.j2",
        title=f"{style.benchmark_name(run['benchmark'])}, {_variant(run)}, {run['budget']:,} labels, "
        f"seed {run['seed']}",
        run_id=run["run_id"],
        link=mlflow_address(uri, run),
        command=command("run"),
        plugins=f" {shlex.join(given)}" if (given := plugin_options([run["plugins"]])) else "",
        parts=parts,
    )
