"""What people ask while data and captions are prepared."""

import threading
from collections.abc import Callable, Iterator

import pytest

from sweeps.plan.spec import Selection, Spec
from sweeps.run import listening as module
from sweeps.run.listening import Listening
from sweeps.show.overview import Overview, open_overview
from sweeps.stopping import AskedToStop
from sweeps.track.store import Store
from sweeps.track.wishes import ask_to_pause, ask_to_stop

SECONDS = 60.0  # for a thread; nothing waits for so long unless it is broken


@pytest.fixture
def opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> Overview:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    return open_overview(store, Spec("attention", "toy", (), (Selection(budgets=(100,)),)), "", 1)


@pytest.fixture
def said(store: Store, opened: Overview) -> Iterator[tuple[Listening, list[str]]]:
    lines: list[str] = []
    with Listening(store, [opened], lines.append) as listening:
        yield listening, lines


def work(begin: Callable[[], object], tries: list[int]) -> Callable[[], str]:
    """Takes for ever at its first try, at which it calls `begin`; the second one is done at once."""

    def prepare() -> str:
        tries.append(1)
        if len(tries) == 1:
            begin()
            assert not threading.Event().wait(SECONDS), "nobody has interrupted it"
        return "three captions"

    return prepare


def test_a_preparation_that_is_told_to_stop_ends(
    store: Store, said: tuple[Listening, list[str]]
) -> None:
    (overview,) = store.overviews()
    with pytest.raises(AskedToStop, match="@"):
        said[0].during(work(lambda: ask_to_stop(store, overview), []))


def test_one_that_is_paused_ends_and_is_done_again_after_resume(
    store: Store, said: tuple[Listening, list[str]]
) -> None:
    listening, lines = said
    (overview,) = store.overviews()
    tries: list[int] = []

    def resume() -> None:
        while not lines:
            assert not done.wait(0.01)
        assert "paused by" in lines[0]
        assert len(tries) == 1, "it works although it is paused"
        ask_to_pause(store, overview, False)

    done, other = threading.Event(), threading.Thread(target=resume)
    other.start()
    try:
        assert listening.during(work(lambda: ask_to_pause(store, overview, True), tries)) == (
            "three captions"
        )
    finally:
        done.set()
        other.join(SECONDS)
    assert (len(tries), lines[1:]) == (2, ["resumed"])


def test_errors_of_the_preparation_are_its_own(said: tuple[Listening, list[str]]) -> None:
    def broken() -> str:
        raise FileNotFoundError("no images")

    def stopped() -> str:
        raise KeyboardInterrupt

    with pytest.raises(FileNotFoundError):
        said[0].during(broken)
    with pytest.raises(KeyboardInterrupt):
        said[0].during(stopped)
    assert said[0].during(lambda: "whole") == "whole"


def test_an_overview_that_somebody_has_deleted_asks_for_nothing(
    store: Store, opened: Overview, said: tuple[Listening, list[str]]
) -> None:
    store.delete(opened.run_id)

    def two_looks() -> str:
        for _ in range(2):
            said[0]._looked.clear()
            assert said[0]._looked.wait(SECONDS)
        return "whole"

    assert said[0].during(two_looks) == "whole"
