"""What the commands do that steer sweeps from another terminal, or look at what these have left.

Each takes the command's options and a console, and returns its exit code; see `sweeps.cli`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from semidavil.place import command
from sweeps import request
from sweeps.request import Options, open_store
from sweeps.stopping import DONE, WRONG

if TYPE_CHECKING:
    from sweeps.show.status import Status
    from sweeps.track.runs import TrackedRun
    from sweeps.track.store import Store

# What is said of a run that has not failed, by MLflow's word for it.
STATES = {
    "FINISHED": "has finished",
    "RUNNING": "is running",
    "KILLED": "was stopped, and the command that began it goes on with it",
}


def _sweeps(options: Options) -> "tuple[Store, list[Status]]":
    """The store, and the sweeps that the command means."""
    from sweeps.show.status import look

    store = open_store(options).within(0)  # a store that is away is named at once
    return store, look(store, options.grid).sweeps


def _ask(
    options: Options,
    console: Console,
    ask: "Callable[[Store, TrackedRun], None]",
    meant: "Callable[[Status], bool]",
    text: str,
    state: str = "running",
) -> int:
    """Asks the sweeps that are meant, and says so; `state` is what they have in common."""
    store, found = _sweeps(options)
    asked = [one for one in found if one.overview and meant(one)]
    for one in asked:
        if one.overview:
            ask(store, one.overview)
        remark = f" ({one.state})" if one.process_lives else ""
        console.print(f"{escape(f'{one.grid}, {one.settings}{remark}')}: {text}")
    if asked:
        return DONE
    states = "".join(f"\n    {one.grid}, {one.settings}: {one.state}" for one in found)
    console.print(f"no sweep is {state}:{escape(states)}")
    return WRONG


def stop(options: Options, console: Console) -> int:
    """`python -m sweeps stop`."""
    from sweeps.track.wishes import ask_to_stop

    text = "told to stop; within seconds its runs write checkpoints, and the same command goes on from them"
    return _ask(options, console, ask_to_stop, _is_live, text)


def pause(options: Options, console: Console) -> int:
    """`python -m sweeps pause`."""
    from sweeps.track.wishes import ask_to_pause

    text = "paused; within seconds its runs write checkpoints. Go on: python -m sweeps resume"
    return _ask(options, console, lambda s, o: ask_to_pause(s, o, True), _is_live, text)


def resume(options: Options, console: Console) -> int:
    """`python -m sweeps resume`."""
    from sweeps.track.wishes import Wishes, ask_to_pause

    def is_paused(one: "Status") -> bool:
        return one.overview is not None and bool(Wishes.of(one.overview.tags).paused)

    def ask(store: "Store", overview: "TrackedRun") -> None:
        ask_to_pause(store, overview, False)

    return _ask(options, console, ask, is_paused, "goes on", "paused")


def _is_live(one: "Status") -> bool:
    return one.is_live


def _has_failed(run: "TrackedRun") -> bool:
    return run.status == "FAILED" or (run.status == "FINISHED" and run.is_undefined)


def retry(options: Options, console: Console) -> int:
    """`python -m sweeps retry RUN`."""
    from sweeps.show.find import find_run
    from sweeps.track.wishes import ask_to_retry

    store, found = _sweeps(options)
    run = find_run(store, options.run, options.grid, likely=_has_failed)
    if not _has_failed(run):
        what = STATES.get(run.status, f"is {run.status}")
        console.print(f"{escape(run.name)} {what}: there is nothing to retry")
        return WRONG
    mine = [one for one in found if run.key in one.keys and one.overview]
    ask_to_retry(store, [one.overview for one in mine if one.overview], run)
    live = [one for one in mine if one.is_live]
    if live:
        console.print(f"{escape(run.name)} is tried again by the sweep of {escape(live[0].grid)}")
    else:
        commands = [one.command for one in mine if one.command]
        again = commands[0] if commands else f"{command('run')} --grid {run.made_by}"
        console.print(f"no sweep is running; this one tries it again: {escape(again)}")
    return DONE


def logs(options: Options, console: Console) -> int:
    """`python -m sweeps logs RUN`."""
    from sweeps.show.find import find_run
    from sweeps.show.logs import follow, log_of

    store = open_store(options).within(0)
    run = find_run(store, options.run, options.grid)
    if not options.follow:
        _write(log_of(store, run))
        return DONE
    run = follow(store, run, _write)
    reason = run.tags.get("reason", "")
    console.print(f"{escape(run.name)}: {run.status}{escape(f', {reason}' if reason else '')}")
    return DONE


def _write(text: str) -> None:
    """A program's output, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def clean(options: Options, console: Console) -> int:
    """`python -m sweeps clean`."""
    from sweeps.track.clean import leftovers

    store = open_store(options).within(0)
    cache = Path(options.cache) if options.cache else request.ROOT / "data"
    found = leftovers(store, cache, options.days)
    meant = [one for one in found if one.known or options.unknown]
    freed = failed = 0
    for one in meant:
        done = "would go"
        if options.delete:
            gone = one.remove()
            done, failed = ("gone", failed) if gone else ("stays, it is in use now", failed + 1)
            freed += one.size if gone else 0
        size = size_text(one.size) if one.size else ""
        console.print(f"{size:>9}  {done}: {escape(f'{one.place} ({one.what})')}")
    if kept := [one for one in found if one not in meant]:
        console.print(
            f"{size_text(sum(one.size for one in kept)):>9}  stays: {len(kept)} checkpoints of runs that "
            "this MLflow does not know, and another one may; --unknown counts them in"
        )
    if options.delete:
        console.print(f"{size_text(freed)} freed")
    elif meant:
        total = sum(one.size for one in meant)
        console.print(f"{size_text(total)} in all; nothing was removed: --delete does")
    else:
        console.print("nothing to clean")
    return WRONG if failed else DONE


def size_text(size: float) -> str:
    """`1.5 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def export(options: Options, console: Console) -> int:
    """`python -m sweeps export runs`."""
    from sweeps.show.export import as_csv, as_json

    store = open_store(options).within(0)
    runs = [
        run
        for run in store.runs(all_metrics=True)
        if options.grid in (None, run.made_by, *run.tags.get("grids", "").split())
    ]
    text, place = (as_csv(runs), options.csv) if options.csv else (as_json(runs), options.json_file)
    if place == "-":
        _write(text)
    else:
        Path(place).write_text(text)
        Console(stderr=True).print(f"wrote {len(runs)} runs into {escape(str(place))}")
    return DONE


COMMANDS: dict[str, Callable[[Options, Console], int]] = {
    "stop": stop,
    "pause": pause,
    "resume": resume,
    "retry": retry,
    "logs": logs,
    "clean": clean,
    "export": export,
}
