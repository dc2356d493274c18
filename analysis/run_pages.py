"""A page of all runs that can be sorted and filtered, and a page for each of them."""

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import style
from analysis.runs import ENVIRONMENT, Tracked, default_settings
from semidavil.place import command

FOLDER = "runs"
UI = "http://127.0.0.1:5000"  # where `mlflow ui` shows a local store
SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
COLUMNS = {"benchmark": "Benchmark", "variant": "Variant", "budget": "Labels", "seed": "Seed",
           "score": "Score", "state": "State", "steps": "Steps", "minutes": "Minutes", "preset": "Preset",
           "device": "Device", "commit": "Commit", "ended": "Ended (UTC)"}  # fmt: skip


def mlflow_address(uri: str, experiment_id: str, run_id: str) -> str:
    """The run in MLflow's own pages; of a local store, where `mlflow ui` shows them."""
    place = uri.rstrip("/") if uri.startswith(("http://", "https://")) else UI
    return f"{place}/#/experiments/{experiment_id}/runs/{run_id}"


def run_rows(tracked: Tracked) -> list[dict[str, Any]]:
    """What the page of all runs shows of each, finished ones first."""
    rows = []
    for table in (tracked.table, tracked.open):
        for run in table.to_dict("records"):
            score = run.get("miou", float("nan"))
            score = run.get("dice", score) if score != score else score
            rows.append(
                {"run_id": run["run_id"], "benchmark": style.benchmark_name(run["benchmark"]),
                 "variant": f"{run['experiment']}: {_variant(run)}", "budget": run["budget"],
                 "seed": int(run["seed"]), "score": "" if score != score else f"{score:.2f}",
                 "state": run.get("why") or "finished", "steps": f"{int(run['steps']):,}",
                 "minutes": f"{run['seconds'] / 60:.1f}" if run.get("seconds", 0) > 0 else "",
                 "preset": run["env/preset"], "device": run["env/device"], "commit": run["env/commit"][:8],
                 "ended": _time(run["ended"])}
            )  # fmt: skip
    return rows


def _variant(run: Mapping[Any, Any]) -> str:
    parts = (run["method"], run["fusion"], run["loss"], run["captions"])
    return ", ".join(map(str, parts))


def _time(milliseconds: float | None) -> str:
    if milliseconds is None or milliseconds != milliseconds:
        return ""
    return str(pd.Timestamp(milliseconds, unit="ms"))[:16]


def run_pages(tracked: Tracked, folder: Path, css: str) -> dict[str, bytes]:
    """The page of each finished run that has none in `folder` yet: what is finished does not change."""
    there = {path.stem for path in folder.glob("*.html")} if folder.exists() else set()
    defaults = default_settings()
    new = tracked.table[~tracked.table["run_id"].isin(there)]
    metrics = [
        c for c in new.columns if c not in defaults and not c.startswith(("env/", "runtime."))
    ]
    skipped = {
        "key",
        "grids",
        "data",
        "experiment",
        "experiment_id",
        "ended",
        "version",
        "asked",
        "run_id",
    }
    metrics = [c for c in metrics if c not in skipped]
    return {
        f"{run['run_id']}.html": _page(run, defaults, metrics, tracked.uri, css).encode()
        for run in new.to_dict("records")
    }


def _page(
    run: Mapping[Any, Any], defaults: dict[str, Any], metrics: list[str], uri: str, css: str
) -> str:
    where = f"{run['budget']:,} labels, seed {run['seed']}"
    title = f"{style.benchmark_name(run['benchmark'])}, {_variant(run)}, {where}"
    ours = {s: style.setting_text(run[s]) for s, v in defaults.items() if run[s] != v}
    numbers = {
        m: f"{run[m]:.4g}" for m in metrics if isinstance(run[m], float) and run[m] == run[m]
    }
    made = {name: str(run[f"env/{name}"]) for name in ENVIRONMENT if run[f"env/{name}"]}
    run_id = run["run_id"]
    link = escape(mlflow_address(uri, run["experiment_id"], run_id), quote=True)
    facts = {
        "grids": ", ".join(run["grids"]),
        "ended (UTC)": _time(run["ended"]),
        "data": run["data"],
    }
    parts = [("The run", facts), ("Numbers", numbers), ("Settings that differ from the paper's", ours),
             ("Where it was made", made)]  # fmt: skip
    tables = "".join(f"<h2>{escape(name)}</h2>{_pairs(pairs)}" for name, pairs in parts if pairs)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main>"
        f'<p><a href="../report.html">Report</a> · <a href="../runs.html">All runs</a></p>'
        f"<h1>{escape(title)}</h1>"
        f'<p><a href="{link}">In MLflow</a></p>'
        f"<h2>Once more, or in use</h2><pre>{command('run')} --rerun {escape(run_id)}\n"
        f"python -m semidavil predict {escape(run_id)} IMAGES --out seen</pre>{tables}</main></body></html>\n"
    )


def _pairs(pairs: dict[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Values"><table>{rows}</table></div>'
