"""What the commands do: run a grid or a search, list what they would run, show how they are doing.

Each takes the command's options and a console, and returns its exit code; see `sweeps.cli`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from semidavil.config import RESULTS_VERSION, Config, ConfigError, parse_settings
from semidavil.marks import BUNDLED, MEANING, REAL_WEIGHTS
from semidavil.place import CHECKOUT, DRAW
from sweeps import request as asked
from sweeps import slurm, steer
from sweeps.batch import notifying, print_left_out, print_notes, submit
from sweeps.given import known_grid, take_config
from sweeps.plan.checks import find_problems, why_unwritable
from sweeps.plan.grids import ALL, GRIDS, SEARCH, SHARED_AXES
from sweeps.plan.needs import left_out
from sweeps.plan.spec import Job, Spec
from sweeps.request import (
    Options,
    data_are_here,
    missing_here,
    open_store,
    present_data,
    requested,
    require_benchmark,
    searched,
    spec_and_base,
)
from sweeps.show.notify import Notify, quiet
from sweeps.stopping import DONE, ELSEWHERE, WRONG

if TYPE_CHECKING:
    from sweeps.plan.cells import Plan
    from sweeps.plan.data import PresentData
    from sweeps.run.context import SweepOptions
    from sweeps.run.resources import Resources
    from sweeps.run.sweep import SweepResult
    from sweeps.track.store import Store


def run(options: Options, console: Console) -> int:
    """`python sweeps/run.py`; raises ConfigError if the command is wrong."""
    take_config(options)
    if options.show_settings or options.print_config:
        return _show_settings(options, console)
    if options.rerun:
        if options.slurm is not None:
            raise ConfigError("--rerun trains one run here and now: leave --slurm out")
        return _rerun(options, console)
    options.grid = known_grid(options.grid)
    if options.grid is None and not options.list_only:
        raise ConfigError(
            f"--grid is missing: choose from {', '.join([*GRIDS, ALL, SEARCH])}; --list explains them"
        )
    for benchmark in options.benchmark:
        require_benchmark(benchmark)
    if options.slurm is not None:
        return submit(options, console)
    if options.list_only and options.grid != SEARCH:
        return _list(options, console)
    if options.list_only:
        return _search(options, console, quiet)
    if options.time_limit:
        slurm.begin_time_limit(options.time_limit)
    with notifying(options, console) as (notify, ended):
        sweep = _search if options.grid == SEARCH else _sweep
        code = sweep(options, console, notify)
        ended(code)
    return code


def _resources(options: Options, base: Config, console: Console) -> "Resources":
    """What each run gets; says what was asked for and is not there."""
    from sweeps.run.resources import choose_resources

    resources = choose_resources(
        base.runtime.device, options.concurrency, options.cpus_per_trial, options.gpus_per_trial,
        options.address, base.runtime.world_size,
    )  # fmt: skip
    if resources.note:
        console.print(f"[yellow]note:[/] {escape(resources.note)}")
    return resources


def _show_settings(options: Options, console: Console) -> int:
    """`--settings`, `--print-config`: what would be trained, without a grid or with what it leaves open."""
    from semidavil.describe import settings_table, to_yaml

    spec, base = spec_and_base(options, known_grid(options.grid) or "")
    if options.show_settings:
        console.print(settings_table(base, spec.preset))
    else:  # benchmarks, labels and seeds are options
        print(to_yaml(base, spec.preset, tuple(SHARED_AXES)), end="")
    return DONE


# A grid, or all of them


def _list(options: Options, console: Console) -> int:
    """The cells of a grid, or all grids; and what cannot run. Starts and creates nothing."""
    request, store = requested(options), open_store(options)
    resources = _resources(options, request.base, console)
    concurrency, gpus = resources.concurrency, resources.gpus

    from sweeps.plan.cells import plan_of
    from sweeps.show.tables import lacking_lines, print_grids, print_plan, summary

    runs, data = store.runs(), present_data(options, request.base, read=False)

    retry, refresh = options.retry_failed, options.refresh
    plans = [plan_of(job, runs, retry, data, refresh) for job in request.jobs]
    if options.grid in (None, ALL):
        print_grids(console, plans, request.jobs[0].spec.preset, concurrency, gpus)
        each = replace(request.jobs[0], configs=request.configs)
        whole = summary(plan_of(each, runs, retry, data, refresh), concurrency, gpus)
        console.print(f"--grid {ALL}: {whole}")
    else:
        print_plan(console, plans[0], request.jobs[0].spec.preset, concurrency, gpus)
    _say_what_runs_saw(console, options, plans, data)
    print_notes(console, request.notes)
    lines = [*request.left_out, *lacking_lines(plans), *_storage_problems(store)]
    print_left_out(console, lines)
    return WRONG if lines else DONE


def _storage_problems(store: "Store") -> Iterable[str]:
    """Why runs cannot be kept here; a server and a bucket are only asked when something is to run."""
    if store.is_new() and (why := why_unwritable(store.folder)):
        remedy = "name another place with MLFLOW_TRACKING_URI=sqlite:///PATH.db"
        yield f"runs cannot be tracked in {store.database}: {why}; {remedy}"
    uri = store.storage.uri
    if "://" not in uri and (why := why_unwritable(Path(uri))):
        remedy = "name another folder or a bucket with --storage"
        yield f"checkpoints cannot be kept in {uri}: {why}; {remedy}"


def _sweep(options: Options, console: Console, notify: Notify) -> int:
    request = requested(options)
    print_left_out(console, request.left_out)
    print_notes(console, request.notes)
    if not request.configs:
        console.print("nothing that was asked for can run")
        return WRONG
    store = open_store(options)
    resources = _resources(options, request.base, console)

    from sweeps.plan.cells import plan_of
    from sweeps.run.sweep import Sweep, tidy
    from sweeps.show.address import where_to_look
    from sweeps.show.tables import lacking_lines, print_failures, print_results, summary

    def print_summary(plan: "Plan") -> None:
        name = f"{plan.grid_name}: " if len(request.jobs) > 1 else ""
        console.print(escape(name + summary(plan, resources.concurrency, resources.gpus)))

    _say_bundled(console, request.base, request.configs)
    tidy(store, console)
    runs, data = store.runs(), present_data(options, request.base, read=True)
    retry, refresh = options.retry_failed, options.refresh
    plans = [plan_of(job, runs, retry, data, refresh) for job in request.jobs]
    for plan in plans:
        print_summary(plan)
    if any(plan.waiting for plan in plans):
        only = store.experiment_id(plans[0].grid_name) if len(plans) == 1 else ""
        console.print(f"runs: {escape(where_to_look(store, only))}", soft_wrap=True)
    sweep_options = _sweep_options(options, store, request.jobs[0].spec, data, notify)
    result = Sweep(store, resources, console, sweep_options).run_jobs(request.jobs)
    for plan in result.plans.values():
        print_results(console, plan)
        print_summary(plan)
    diverged, code = _how_it_went(result)
    again = options.again("--retry-failed") if diverged else options.again()
    if result.failed:
        print_failures(console, result.failed, again)
    elif diverged:
        why = "an infinite loss, an undefined score, a mistake in a plugin"
        console.print(
            escape(f"{diverged} runs that failed for good ({why}) are tried again only by {again}")
        )
    _say_what_runs_saw(console, options, result.plans.values(), data)
    print_left_out(console, lacking_lines(result.plans.values()))
    if code == ELSEWHERE:
        console.print("other sweeps are at work on the rest; --wait stays until that is done")
    console.print(f"draw them: {DRAW}")
    if code == ELSEWHERE and slurm.in_array():
        code = DONE  # this job has done its part, and SLURM takes anything else for a failure
    return WRONG if request.left_out else code


def _how_it_went(result: "SweepResult") -> tuple[int, int]:
    """How many cells have diverged, and the exit code."""
    from sweeps.plan.cells import State

    counts = sum((plan.counts() for plan in result.plans.values()), Counter[State]())
    not_done = counts.total() - counts[State.DONE]
    if result.failed or result.undelivered or not_done > result.elsewhere:
        return counts[State.DIVERGED], WRONG
    return 0, ELSEWHERE if result.elsewhere else DONE


def _say_what_runs_saw(
    console: Console, options: Options, plans: Iterable["Plan"], data: "PresentData"
) -> None:
    """Which cells are of other data than are here now; and where that could not be found out."""
    from sweeps.show.tables import other_data

    # A cell that several grids share counts once.
    if left := {cell.config.key(): cell for plan in plans for cell in plan.on_other}:
        text = other_data(list(left.values()), options.again("--refresh"))
        console.print(f"[yellow]note:[/] {escape(text)}")
    for why in data.unknown:
        console.print(
            f"[yellow]note:[/] what runs saw was not compared with the data: {escape(why)}"
        )


def _say_bundled(console: Console, base: Config, configs: Iterable[Config]) -> None:
    from sweeps.show.tables import mark_of

    if any(mark_of(config) == BUNDLED for config in configs):
        console.print(
            f"[yellow]note:[/] this trains {MEANING[BUNDLED]}. For real weights: {REAL_WEIGHTS}"
        )


def _sweep_options(
    options: Options, store: "Store", spec: Spec, data: "PresentData", notify: Notify
) -> "SweepOptions":
    """Also gives the store what is attached to each run: changes of the code."""
    from sweeps.run.context import SweepOptions
    from sweeps.track.provenance import code_changes, code_tags

    tags = code_tags(CHECKOUT)
    if changes := code_changes(CHECKOUT):
        store.attachments = {tags["changes"]: changes}
    return SweepOptions(
        tags={**tags, "preset": spec.preset, "results_version": str(RESULTS_VERSION)},
        train=asked.train_function(),
        retries=options.retries,
        retry_diverged=options.retry_failed,
        refresh=options.refresh,
        data=data,
        wait=options.wait,
        command=options.told_to_others(),
        notify=notify,
    )


# Searching


def _search(options: Options, console: Console, notify: Notify) -> int:
    spec, base = searched(options)
    problems = find_problems([base]) if data_are_here(options, base) else []
    reasons = [problem.reason for problem in problems]
    lacks = missing_here(options, [base]) if not problems else {}
    reasons += left_out((f"the search of {base.data.benchmark}", each) for each in lacks.values())
    print_left_out(console, reasons)
    if reasons and not options.list_only:
        return WRONG
    store = open_store(options)
    resources = _resources(options, base, console)

    from sweeps.plan.pace import Pace
    from sweeps.run.search import (
        ABOUT,
        StudySource,
        confirmation,
        other_data,
        print_confirmation,
        print_search,
        write_study,
    )
    from sweeps.run.study import Study
    from sweeps.run.sweep import Sweep, tidy
    from sweeps.show.address import where_to_look
    from sweeps.show.overview import open_overview
    from sweeps.show.tables import print_failures, print_results
    from sweeps.track.retry import TrackingError

    try:
        study = Study(base, options.objective, options.trials, store, create=not options.list_only)
    except KeyError as error:
        console.print(f"study {error.args[0]}: not begun, {options.trials} trials to run")
        return WRONG if reasons else DONE
    if not options.list_only:
        _say_bundled(console, base, [base])
        tidy(store, console)
    runs, data = store.runs(), present_data(options, base, read=not options.list_only)
    pace = Pace(runs)
    changed = other_data(study, runs, data)
    if changed and options.refresh and not options.list_only:
        study.begin_anew()
        changed = []
    print_search(console, study, pace, resources)
    _say_what_runs_saw(console, options, [], data)
    if changed:
        console.print(
            f"[yellow]note:[/] trials of this study saw other data than are here now (not the same: "
            f"{', '.join(changed)}): bring the data back, or begin anew: "
            f"{escape(options.again('--refresh'))}"
        )
        return DONE if options.list_only else WRONG
    if options.list_only:
        return WRONG if reasons else DONE

    spec = replace(spec, study=study.name)
    chosen = _sweep_options(options, store, spec, data, notify)
    sweep = Sweep(store, resources, console, chosen)
    source = StudySource(
        study, store, console.print, options.wait, options.retry_failed, data, options.refresh
    )
    work = source.total or source.elsewhere  # what others are at may become free
    concurrency = resources.concurrency
    overview = None
    if work:
        console.print(f"runs: {escape(where_to_look(store, store.experiment_id(SEARCH)))}")
        tags = {"command": chosen.command, "storage": store.storage.uri}
        overview = open_overview(store, spec, ABOUT, concurrency, data, tags)
    try:
        if overview:
            sweep.run_source(source, overview, [base])
    finally:
        study.close()
        if overview:
            with suppress(TrackingError):
                write_study(store, overview, study)
    if overview:
        print_search(console, study, pace, resources)
    if options.confirm_seeds and study.best():
        grid, configs = confirmation(study, options.confirm_seeds)
        if configs:
            plan = sweep.run_jobs([Job(spec, grid, configs)]).plans[SEARCH]
            print_results(console, plan)
            print_confirmation(console, plan)
        else:
            console.print("no trial is better than the preset: there is nothing to confirm")
    elif not options.confirm_seeds:
        console.print("what the best trial is worth: the same command with --confirm-seeds 1 2 3")
    result = sweep.result
    if result.failed:
        print_failures(console, result.failed, options.again())
        return WRONG
    _, code = _how_it_went(result)
    if not code and study.failed("other"):  # by another sweep
        code = WRONG
    if not code and source.elsewhere:
        console.print("other sweeps are at work on the rest; --wait stays until that is done")
        code = ELSEWHERE
    return code


# The other commands


def _rerun(options: Options, console: Console) -> int:
    from sweeps.show.rerun import rerun

    for path in parse_settings(options.settings):
        if not path.startswith("runtime."):
            raise ConfigError(f"--rerun with --set {path}: only runtime.* may differ from the run")
    settings, train = asked.settings_of(options), asked.train_function()
    changes = {name: value for name, value in settings.items() if name.startswith("runtime.")}
    store = open_store(options)
    return DONE if rerun(store, options.rerun, changes, CHECKOUT, console, train) else WRONG


def status(options: Options, console: Console) -> int:
    """`python sweeps/status.py`."""
    from sweeps.show.status import look, watch

    store = open_store(options).within(0)  # a store that is away is named at once
    if options.json:
        while True:
            print(look(store, options.grid).to_json(), flush=True)
            if not options.watch:
                return DONE
            time.sleep(options.watch)
    if options.watch:
        watch(console, lambda: look(store, options.grid).render(), options.watch)
    console.print(look(store, options.grid).render())
    return DONE


def deliver(options: Options, console: Console) -> int:
    """`python sweeps/deliver.py`: 0, or 1 if something could not be delivered."""
    from sweeps.track.deliver import advice, deliver_all, undelivered
    from sweeps.track.retry import StoreAway

    store = open_store(options)
    try:
        delivered = deliver_all(store, partial(console.print, markup=False))
    except StoreAway as error:
        raise StoreAway(f"{error}. {advice(store)}") from None
    console.print(f"delivered {delivered} runs" if delivered else "nothing to deliver")
    return WRONG if undelivered(store) else DONE


COMMANDS: dict[str, Callable[[Options, Console], int]] = {
    "run": run,
    "status": status,
    "deliver": deliver,
    **steer.COMMANDS,
}
