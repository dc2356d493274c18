"""Runs whose numbers follow a formula: for tests of drawing and arithmetic, and nothing else."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from analysis.runs import default_settings, tidy

FUSIONS = ("dlg", "vlga", "wpct", "cross_attention")
BUDGETS = (0, 100, 200, 500, 1000, 2975)
TOY = {"data.toy": "true", "model.vlm": "toy", "model.weights": "bundled", "training.steps": "300"}
PAPER_SCALE: dict[str, str] = {}


def settings(scale: Mapping[str, str] = TOY, **changes: Any) -> dict[str, str]:
    """A run's params; changes with `__` for the dot."""
    texts = {
        name.replace("__", "."): value if isinstance(value, str) else json.dumps(value)
        for name, value in changes.items()
    }
    return {**default_settings(), **scale, **texts}


def key_of(params: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]


def made_up_miou(variant: int, step: int, seed: int) -> float:
    """Falls with the variant's number, grows with the budget's, differs a little by seed."""
    wobble = ((seed * 7 + variant * 3 + step * 5) % 5 - 2) * 0.4
    return 22 + 6 * step**0.7 - 1.5 * variant * (0.6 + 0.1 * step) + wobble


def attention_params(
    benchmarks: Sequence[str] = ("gta5-cityscapes",),
    budgets: Sequence[int] = BUDGETS,
    seeds: Sequence[int] = (0,),
    scale: Mapping[str, str] = TOY,
    fusions: Sequence[str] = FUSIONS,
) -> list[tuple[dict[str, str], float]]:
    """Params and a made-up mIoU of every cell."""
    return [
        (
            settings(
                scale,
                data__benchmark=benchmark,
                data__budget=budget,
                model__fusion=fusion,
                seed=seed,
            ),
            made_up_miou(i, step, seed) + 3 * b,
        )
        for b, benchmark in enumerate(benchmarks)
        for i, fusion in enumerate(fusions)
        for step, budget in enumerate(budgets)
        for seed in seeds
    ]


def frame(cells: Sequence[tuple[dict[str, str], float]], grid: str = "attention") -> pd.DataFrame:
    """The table that `load_runs` would give for finished runs."""
    return tidy(
        [
            {
                "run_id": f"{i:032x}",
                "name": "made up",
                "key": key_of(params),
                "experiment": grid,
                "grid": grid,
                "grids": frozenset([grid]),
                "preset": "toy",
                "commit": "",
                "artifact_uri": "",
                "started": 1000 * i,
                "ended": 1000 * i + 500,
                **params,
                "miou": miou,
                "seconds": 9.0,
            }
            for i, (params, miou) in enumerate(cells)
            if not any(name.startswith("runtime.") for name in params)
        ]
    )


def track(
    client: MlflowClient,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    experiment: str = "attention",
    status: str = "FINISHED",
    **tags: str,
) -> str:
    """Logs one run as the sweeps do; returns its id."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    ours = {"key": key_of(params), "grid": experiment, "preset": "toy", **tags}
    run = client.create_run(
        experiment_id,
        run_name="made up",
        tags={f"semidavil.{tag}": value for tag, value in ours.items()},
    )
    client.log_batch(
        run.info.run_id,
        [Metric(name, value, 0, 0) for name, value in metrics.items()],
        [Param(name, value) for name, value in params.items()],
    )
    if status != "RUNNING":
        client.set_terminated(run.info.run_id, status)
    return run.info.run_id
