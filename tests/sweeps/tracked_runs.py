"""Runs as a tracking store would return them, or as another sweep would leave them there."""

from collections.abc import Mapping

from sweeps.provenance import owner_tags
from sweeps.tracking import Store, TrackedRun


def tracked(
    key: str,
    status: str = "FINISHED",
    *,
    name: str = "",
    ended: int | None = None,
    tags: Mapping[str, str] | None = None,
    experiment: str = "attention",
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, str] | None = None,
) -> TrackedRun:
    """A run of this process, unless `tags` say otherwise."""
    return TrackedRun(
        run_id="0123456789abcdef",
        name=name,
        experiment=experiment,
        status=status,
        started=0,
        ended=ended,
        tags={"key": key, **owner_tags(), **(tags or {})},
        params=params or {},
        metrics=metrics or {},
    )


def take_over(store: Store, run_id: str) -> None:
    """By a living sweep on another machine."""
    store.client.set_tag(run_id, "semidavil.host", "another machine")
