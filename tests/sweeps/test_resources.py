import pytest

from semidavil.config import ConfigError
from sweeps.run.connection import ClusterError, Node
from sweeps.run.events import Task
from sweeps.run.resources import Resources, choose_resources

CLUSTER = [Node("head", 4, 0), Node("a", 16, 4), Node("b", 24, 4)]


@pytest.fixture(autouse=True)
def _machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.run.resources.find_nodes", lambda address: CLUSTER)
    monkeypatch.setattr("sweeps.run.resources._this_machine", lambda: Node("here", 8, 2))


def test_resources_come_from_the_cluster_and_not_from_this_machine() -> None:
    whole = choose_resources("auto", None, None, None, "auto")
    assert (whole.concurrency, whole.cpus, whole.gpus) == (8, 4, 1)
    half = choose_resources("auto", None, None, 0.5, "auto")
    assert (half.concurrency, half.cpus) == (16, 2)
    pair = choose_resources("auto", None, None, None, "auto", world_size=2)
    assert (pair.concurrency, pair.cpus, pair.gpus) == (4, 8, 2)
    pair_of_cpus = choose_resources("cpu", None, None, None, "auto", world_size=2)
    assert (pair_of_cpus.concurrency, pair_of_cpus.cpus, pair_of_cpus.gpus) == (22, 2, 0)
    on_cpus = choose_resources("cpu", None, 2, None, "auto")
    assert (on_cpus.concurrency, on_cpus.cpus, on_cpus.gpus) == (22, 2, 0)


@pytest.mark.parametrize(
    ("asked", "gpus", "concurrency"),
    [(2, None, 2), (4, None, 2), (4, 0.5, 4), (9, 0.5, 4), (9, 0.4, 4), (8, 0, 8), (20, 0, 8)],
)
def test_no_more_trials_run_than_there_is_room_for(
    asked: int, gpus: float | None, concurrency: int
) -> None:
    """On a machine with 8 CPUs and 2 GPUs; a trial more would find no GPU and train on the CPU."""
    resources = choose_resources("auto", asked, None, gpus)
    assert resources.concurrency == concurrency
    assert resources.all_gpus <= 2
    assert bool(resources.note) == (asked > concurrency)
    if resources.note:
        assert f"{concurrency} runs at a time instead of {asked} (--concurrency)" in resources.note


@pytest.mark.parametrize(
    ("gpus", "configured", "device"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (0.5, "auto", "cuda"),
        (2, "auto", "cuda"),
        (1, "cpu", "cpu"),
        (1, "cuda:0", "cuda:0"),
    ],
)
def test_no_trial_chooses_its_device_by_what_it_sees(
    gpus: float, configured: str, device: str
) -> None:
    assert Resources(1, 1, gpus).device(configured) == device


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("auto", None, None, 4, "auto", 2), ConfigError, "each process takes one GPU"),
        (("cuda", None, None, 0, "auto"), ConfigError, "leave one of the two out"),
        (("auto", None, None, 8, "auto"), ClusterError, "head has 4 CPUs, 0 GPUs; a has 16 CPUs"),
        (("auto", None, 9, None), ClusterError, "the 9 CPUs and 1 GPUs that each trial takes"),
    ],
)
def test_what_no_machine_can_give_is_refused(
    arguments: tuple, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_resources(*arguments)


def test_a_gpu_that_is_not_there_is_refused_before_anything_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sweeps.run.resources._this_machine", lambda: Node("here", 8, 0))
    with pytest.raises(ClusterError, match="no machine has a GPU"):
        choose_resources("cuda", None, None, None)


@pytest.mark.parametrize(
    ("resources", "share"),
    [
        (Resources(4, 2, 0.5), (2, 1)),
        (Resources(4, 2, 0), (8, 0)),
        (Resources(1, 2, 0), (2, 0)),
        (Resources(4, 2, 1), (2, 1)),
        (Resources(4, 2, 0, address="auto"), (2, 0)),
    ],
)
def test_an_exclusive_trial_gets_a_whole_gpu_or_machine(
    resources: Resources, share: tuple[float, float]
) -> None:
    task = Task("cell", {}, "run", 1, "sqlite://", "/runs/key")
    assert resources.of(task) == (resources.cpus, resources.gpus)
    exclusive = Task("cell", {}, "run", 1, "sqlite://", "/runs/key", exclusive=True)
    assert resources.of(exclusive) == share
