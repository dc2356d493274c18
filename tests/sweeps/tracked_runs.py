"""Runs as a tracking store would return them, or as another sweep would leave them there."""

from collections.abc import Mapping
from typing import Any

from semidavil.config import Config
from sweeps.track.provenance import owner_tags
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

ANOTHER_MACHINE = {"host": "another machine", "boot": "another boot"}
DEAD = {"pid": "0", "pid_started": "never"}  # a process of this machine that has ended


def tracked(
    key: str,
    status: str = "FINISHED",
    *,
    run_id: str = "0123456789abcdef",
    name: str = "",
    started: int = 0,
    tags: Mapping[str, str] | None = None,
    experiment: str = "attention",
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, str] | None = None,
) -> TrackedRun:
    """A run of this process, unless `tags` say otherwise."""
    return TrackedRun(
        run_id=run_id,
        name=name,
        experiment=experiment,
        status=status,
        started=started,
        tags={"key": key, **owner_tags(), **(tags or {})},
        params=params or {},
        metrics=metrics or {},
    )


def finished(config: Config, score: float = 30.0, seconds: float = 40.0, **more: Any) -> TrackedRun:
    """A finished run of a Config."""
    metrics = {"final/miou": score, "final/seconds": seconds, "final/steps": config.training.steps}
    return tracked(config.key(), metrics=metrics, params=config.to_params(), **more)


def finish(store: Store, config: Config, score: float, grid: str = "attention") -> str:
    """Leaves a finished run of a Config in the store, as a sweep would; returns its id."""
    tags = {"key": config.key(), "grid": grid, **owner_tags()}
    run_id = store.create_run(store.experiment_id(grid), f"cell {score}", config, tags)
    store.log(run_id, metrics=[("final/miou", score, 0, 0)])
    store.end(run_id, "FINISHED")
    return run_id


def take_over(store: Store, run_id: str) -> None:
    """By a living sweep on another machine."""
    epoch = str(store.run(run_id).epoch + 1)
    store.log(run_id, tags={**ANOTHER_MACHINE, "epoch": epoch})
