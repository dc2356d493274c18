"""The command line of the sweeps.

    python sweeps/run.py --grid attention                 # generated data, minutes on two CPU cores
    python sweeps/run.py --grid attention --list          # what it would run; starts nothing
    python sweeps/run.py --grid attention --data-root DIR --preset paper --seeds 0 1 2

The same command again runs only what is missing.
"""

import argparse
import contextlib
import difflib
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.commandline import default_preset, parse_settings, refuse_oracle
from semidavil.config import PRESETS, Config, ConfigError, preset
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.credentials import redact
from sweeps.grids import ALL, GRIDS, OBJECTIVES, SEARCH, SHARED_AXES, union

if TYPE_CHECKING:
    from sweeps.engine import Resources
    from sweeps.tracking import Store

ROOT = Path(__file__).resolve().parents[1]
TRAIN_VARIABLE = "SEMIDAVIL_TRAIN"  # another training function, as module:function


def parser() -> argparse.ArgumentParser:
    about = {name: grid.about.splitlines()[0] for name, grid in GRIDS.items()}
    about[ALL] = "all of these; a cell that several share is run once"
    about[SEARCH] = "no grid: Optuna chooses the settings, see --trials"
    grids = "\n".join(f"  {name:<13}{text}" for name, text in about.items())
    command = argparse.ArgumentParser(
        prog="python sweeps/run.py",
        description="Runs a grid of training runs and tracks them in MLflow. The same command "
        "again runs only what is missing.",
        epilog=f"grids:\n{grids}\n\nbenchmarks:\n  {', '.join(BENCHMARKS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = command.add_argument_group("what to run")
    what.add_argument("--grid", metavar="NAME", help="one of the grids below, or all of them")
    what.add_argument(
        "--benchmark",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="source and target, one or more [default: the grid's own; toy: its first]",
    )
    what.add_argument(
        "--budgets",
        metavar="N",
        nargs="+",
        type=_natural,
        help="numbers of labelled target images [default: each benchmark's own]",
    )
    what.add_argument("--seeds", metavar="N", nargs="+", type=_natural, default=[0])
    what.add_argument(
        "--preset", metavar="NAME", help=f"{', '.join(PRESETS)} [default: toy; small with data]"
    )
    what.add_argument(
        "--data-root",
        metavar="DIR",
        default=os.environ.get("SEMIDAVIL_DATA_ROOT", ""),
        help="holds a folder per data set [default: $SEMIDAVIL_DATA_ROOT, else generated data]",
    )
    what.add_argument(
        "--set",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="settings",
        help="any other setting, such as training.lr=3e-4",
    )
    what.add_argument(
        "--list",
        action="store_true",
        help="show every cell, its state and the expected time; without --grid: the grids",
    )
    what.add_argument(
        "--rerun",
        metavar="RUN_ID",
        help="train a finished run again from what MLflow knows of it, and compare the numbers",
    )
    what.add_argument(
        "--retry-failed",
        action="store_true",
        help="also run cells, or trials of a search, whose loss became infinite, which would happen "
        "again unless the code has changed; other failures are always tried again",
    )
    search = command.add_argument_group(
        f"--grid {SEARCH}: one benchmark, one number of labels, one seed"
    )
    search.add_argument(
        "--trials", metavar="N", type=_positive_int, default=20, help="in all [default: 20]"
    )
    search.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default=OBJECTIVES[0],
        help="miou ends hopeless trials early (at each --set runtime.eval_every=STEPS); miou-latency "
        "also varies the model and gives the best trade-offs with milliseconds per image",
    )
    search.add_argument(
        "--confirm-seeds",
        metavar="N",
        nargs="+",
        type=_natural,
        default=[],
        help="then train the best trial (of two objectives: by score) and the preset with these seeds: "
        "the best of many trials is too good on the images that chose it",
    )
    how = command.add_argument_group("how to run")
    how.add_argument(
        "--retries",
        metavar="N",
        type=_natural,
        default=1,
        help="how often a failed cell is tried again at once, unless it would fail in the same way "
        "[default: 1]; one that is out of memory beside others is also tried by itself",
    )
    how.add_argument(
        "--concurrency",
        metavar="N",
        type=_positive_int,
        help="runs at a time [default: as many as there are CPU cores or GPUs for]",
    )
    how.add_argument(
        "--gpus-per-trial",
        metavar="X",
        type=_share,
        help="0.5: two runs share a GPU; 2: each run trains on two, which share every batch and give "
        "the result of one [default: 1]",
    )
    how.add_argument("--cpus-per-trial", metavar="N", type=_positive_int)
    how.add_argument(
        "--address", metavar="ADDRESS", help="a running Ray cluster; auto finds this machine's"
    )
    how.add_argument(
        "--storage",
        metavar="PLACE",
        default=os.environ.get("SEMIDAVIL_STORAGE", ""),
        help="keeps checkpoints and logs of unfinished runs; on a cluster, a folder that all machines "
        "share or a bucket, s3://BUCKET/FOLDER [default: $SEMIDAVIL_STORAGE, else checkpoints/ beside "
        "the tracking store]",
    )
    return command


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _positive_int(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= 1 or (value > 1 and value == int(value))):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a share of a GPU, such as 0.5, nor a whole number of GPUs"
        )
    return value


def base_config(options: argparse.Namespace) -> tuple[str, Config]:
    """The preset's name and the Config that every cell is derived from, with absolute folders.

    Raises:
        ConfigError: an unknown name, or a setting that the grid itself varies.
    """
    name = options.preset or default_preset(options.data_root)
    _one_of(name, PRESETS, "preset")
    changes: dict[str, str] = {}
    grids = [grid for grid in chosen_grids(options) if grid in GRIDS]
    varied = {axis: grid for grid in grids for axis in GRIDS[grid].baseline}
    for path, value in parse_settings(options.settings).items():
        if path in SHARED_AXES:
            raise ConfigError(f"--set {path}: use {SHARED_AXES[path]} instead")
        if path in varied:
            raise ConfigError(f"--set {path}: the grid {varied[path]} varies it")
        changes[path] = value
    data_root = changes.pop("runtime.data_root", options.data_root)
    cache_dir = changes.pop("runtime.cache_dir", str(ROOT / "data"))
    # Workers may run in another folder, or on another machine.
    changes["runtime.data_root"] = _absolute(data_root) if data_root else ""
    changes["runtime.cache_dir"] = _absolute(cache_dir)
    if (gpus := options.gpus_per_trial or 0) > 1:  # each is driven by a process of its own
        changes.setdefault("runtime.world_size", f"{gpus:g}")
    base = preset(name, changes)
    if base.data.toy and options.data_root:
        raise ConfigError(
            f"the {name} preset draws generated scenes and would leave --data-root "
            f"{options.data_root} alone: use --preset small or paper, or no --data-root"
        )
    refuse_oracle(base)
    return name, base


def _absolute(folder: str) -> str:
    return str(Path(folder).expanduser().resolve())


def chosen_grids(options: argparse.Namespace) -> list[str]:
    """The grid asked for, or every one."""
    return list(GRIDS) if options.grid == ALL else [options.grid]


def _one_of(name: str, table: Mapping[str, object], what: str) -> None:
    if name not in table:
        close = difflib.get_close_matches(name, table, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"unknown {what} {name!r}{hint} There are: {', '.join(table)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 1 if a cell failed, 2 for a wrong command."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        if options.rerun:
            return _rerun(options, console)
        if options.grid is None and not options.list:
            raise ConfigError(f"--grid is missing: choose from {', '.join([*GRIDS, ALL])}")
        if options.grid is not None:
            _one_of(options.grid, {**GRIDS, ALL: None, SEARCH: None}, "grid")
        for benchmark in options.benchmark:
            _one_of(benchmark, BENCHMARKS, "benchmark")
        if options.grid == SEARCH:
            return _search(options, console)
        if options.list and options.grid in (None, ALL):
            options.grid = ALL
            return _overview(options, console)
        return max(_sweep(options, name, console) for name in chosen_grids(options))
    except KeyboardInterrupt:
        console.print(
            "[yellow]stopped.[/] What has finished is kept; the same command goes on from there:"
        )
        console.print(f"    {escape(_command())}", soft_wrap=True, highlight=False)
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        message = f"[bold red]error:[/] {escape(redact(str(error)))}"
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)
        return 2 if isinstance(error, ConfigError) else 1


def _sweep(options: argparse.Namespace, name: str, console: Console) -> int:
    preset_name, base = base_config(options)
    grid = GRIDS[name].around(base)
    configs = grid.cells(base, options.benchmark, options.budgets, options.seeds)

    # MLflow, Ray and PyTorch take seconds to import: wrong commands are refused before that.
    from sweeps.overview import write_overview
    from sweeps.plan import Plan, State, make_plan
    from sweeps.sweep import run_sweep
    from sweeps.tables import print_failures, print_plan, print_results, summary
    from sweeps.tracking import Store, chosen_storage, tracking_uri
    from sweeps.trial import TRAIN

    store = Store(ROOT, tracking_uri(), chosen_storage(options.storage))
    resources = _resources(options, base)

    def plan_now() -> Plan:
        return make_plan(name, grid, configs, store.runs(), options.retry_failed)

    if options.list:
        print_plan(console, plan_now(), resources.concurrency, resources.gpus)
        return 0

    def told(plan: Plan) -> str:
        return summary(plan, resources.concurrency, resources.gpus)

    def write_down(plan: Plan) -> Plan:
        write_overview(store, plan, resources.concurrency)
        return plan

    _tidy(store, console)
    plan = plan_now()
    console.print(told(plan), highlight=False, soft_wrap=True)
    failed: list[tuple[str, str, str]] = []
    if plan.waiting:
        train = os.environ.get(TRAIN_VARIABLE, TRAIN)
        tags = _provenance(store, preset_name)
        with _written_down_if_stopped(lambda: write_down(plan_now())):
            failed = run_sweep(
                plan, store, resources, tags, console, train, options.retries,
                begin=partial(write_down, plan),
            ).failed  # fmt: skip
        plan = write_down(plan_now())
    else:
        write_down(plan)
        for run in plan.foreign():
            store.add_to_grid(run, name)
    print_results(console, plan)
    console.print(told(plan), highlight=False, soft_wrap=True)
    hopeless = [cell for cell in plan.cells if cell.state is State.HOPELESS]
    retry = _command("--retry-failed") if hopeless else _command()
    if failed:
        print_failures(console, failed, retry)
    elif hopeless:
        only = f"{len(hopeless)} cells, whose loss became infinite, are tried again only by {retry}"
        console.print(escape(only), highlight=False, soft_wrap=True)
    console.print("look at the runs: mlflow ui    draw them: python analysis/make_figures.py")
    return 1 if failed or hopeless else 0


@contextlib.contextmanager
def _written_down_if_stopped(write: Callable[[], object]) -> Iterator[None]:
    """Brings a sweep's overview up to date although it fails or is stopped, and lets that through."""
    from sweeps.server import StoreAway

    try:
        yield
    except StoreAway:
        raise  # there is nowhere to write
    except BaseException:
        with contextlib.suppress(StoreAway):
            write()
        raise


def _tidy(store: "Store", console: Console) -> None:
    """Ends what earlier sweeps have left unended."""
    from sweeps.deliver import deliver_kept

    if count := deliver_kept(store, lambda text: console.print(escape(text), soft_wrap=True)):
        console.print(f"delivered {count} runs that had ended while the tracking store was away")
    if dead := store.close_dead(store.runs()):
        console.print(f"closed {len(dead)} runs that a stopped sweep had left open")


def _provenance(store: "Store", preset_name: str) -> dict[str, str]:
    """Tags of the runs that are begun from here on; changes of the code are attached to them."""
    from sweeps.provenance import code_changes, code_tags

    tags = code_tags(ROOT)
    if changes := code_changes(ROOT):
        store.attachments = {tags["changes"]: changes}
    return {**tags, "preset": preset_name}


def _search(options: argparse.Namespace, console: Console) -> int:
    preset_name, base = _searched_config(options)

    from sweeps.overview import write_search_overview
    from sweeps.plan import make_plan
    from sweeps.search import (
        ABOUT,
        SearchDriver,
        confirmation,
        print_confirmation,
        print_search,
        remove_stopped,
        waiting_plan,
    )
    from sweeps.study import Study, study_name
    from sweeps.sweep import run_sweep
    from sweeps.tables import print_failures, print_results, summary
    from sweeps.tracking import Store, chosen_storage, tracking_uri
    from sweeps.trial import TRAIN

    store = Store(ROOT, tracking_uri(), chosen_storage(options.storage))
    resources = _resources(options, base)
    try:
        study = Study(base, options.objective, options.trials, store, create=not options.list)
    except KeyError:
        name = study_name(base, options.objective, store.uri)
        console.print(f"study {name}: not begun, {options.trials} trials to run", highlight=False)
        return 0
    if not options.list:
        _tidy(store, console)
    runs = store.runs()
    if not options.list:
        remove_stopped(store, runs)
        study.catch_up(options.retry_failed)
    plan = waiting_plan(study, runs)
    told = (
        summary(plan, resources.concurrency, resources.gpus)
        if plan.cells
        else "all trials have ended"
    )
    console.print(f"study {study.name}: {told}", highlight=False, soft_wrap=True)
    if options.list:
        print_search(console, study)
        return 0
    train = os.environ.get(TRAIN_VARIABLE, TRAIN)
    tags = _provenance(store, preset_name)
    failed: list[tuple[str, str, str]] = []
    write_down = partial(write_search_overview, store, study, ABOUT)
    if plan.waiting:
        with _written_down_if_stopped(write_down):
            failed = run_sweep(
                plan, store, resources, tags, console, train, options.retries,
                partial(SearchDriver, study), write_down,
            ).failed  # fmt: skip
        study.take_busy()
    write_down()
    print_search(console, study)
    if options.confirm_seeds and study.best():
        grid, configs = confirmation(base, study, options.confirm_seeds)
        plan = make_plan(SEARCH, grid, configs, store.runs())
        if plan.waiting:
            failed += run_sweep(
                plan, store, resources, tags, console, train, options.retries
            ).failed
            plan = make_plan(SEARCH, grid, configs, store.runs())
        if plan.cells:
            print_results(console, plan)
            print_confirmation(console, plan)
        else:
            console.print("no trial is better than the preset: there is nothing to confirm")
    elif not options.confirm_seeds:
        console.print("what the best trial is worth: the same command with --confirm-seeds 1 2 3")
    if failed:
        print_failures(console, failed, _command())
    return 1 if failed else 0


def _searched_config(options: argparse.Namespace) -> tuple[str, Config]:
    """The Config that a search starts from.

    Raises:
        ConfigError: several benchmarks, numbers of labels or seeds; a seed that would confirm itself.
    """
    name, base = base_config(options)
    changes: dict[str, object] = {}
    chosen = {
        "data.benchmark": options.benchmark, "data.budget": options.budgets, "seed": options.seeds
    }  # fmt: skip
    for path, values in chosen.items():
        if values and len(values) > 1:
            raise ConfigError(f"a search has one value of {path}: give one, not {len(values)}")
        if values:
            changes[path] = values[0]
    if options.objective == "miou" and not base.runtime.eval_every:
        # One rung at a third: enough to end what does not learn, and cheap.
        changes["runtime.eval_every"] = -(-base.training.steps // 3)
    base = base.replace(changes)
    if base.seed in options.confirm_seeds:
        raise ConfigError(
            f"--confirm-seeds {base.seed}: the search itself chooses with this seed; give others"
        )
    return name, base


def _resources(options: argparse.Namespace, base: Config) -> "Resources":
    from sweeps.engine import choose_resources

    return choose_resources(
        base.runtime.device,
        options.concurrency,
        options.cpus_per_trial,
        options.gpus_per_trial,
        options.address,
        base.runtime.world_size,
    )


def _rerun(options: argparse.Namespace, console: Console) -> int:
    from sweeps.rerun import rerun
    from sweeps.tracking import Store, tracking_uri
    from sweeps.trial import TRAIN

    changes = parse_settings(options.settings)
    if wrong := [path for path in changes if not path.startswith("runtime.")]:
        raise ConfigError(f"--rerun with --set {wrong[0]}: only runtime.* may differ from the run")
    changes.setdefault("runtime.cache_dir", str(ROOT / "data"))
    if options.data_root:
        changes.setdefault("runtime.data_root", _absolute(options.data_root))
    store, train = Store(ROOT, tracking_uri()), os.environ.get(TRAIN_VARIABLE, TRAIN)
    return rerun(store, options.rerun, changes, ROOT, console, train)


def _overview(options: argparse.Namespace, console: Console) -> int:
    """Every grid: what it is for, its runs and what is left of them, and how long that takes."""
    from sweeps.plan import make_plan
    from sweeps.tables import summary
    from sweeps.tracking import Store, tracking_uri

    _, base = base_config(options)
    resources = _resources(options, base)
    concurrency, gpus = resources.concurrency, resources.gpus
    runs = Store(ROOT, tracking_uri()).runs()
    table = Table("grid", "about", "here", title="grids", title_justify="left", show_lines=True)
    every = []
    for name, grid in GRIDS.items():
        cells = grid.cells(base, options.benchmark, options.budgets, options.seeds)
        every += cells
        plan = make_plan(name, grid.around(base), cells, runs)
        table.add_row(name, escape(grid.about), escape(summary(plan, concurrency, gpus)))
    console.print(table)
    plan = make_plan(ALL, GRIDS["attention"], union(every), runs)
    text = f"--grid {ALL}: {summary(plan, concurrency, gpus)}"
    console.print(text, highlight=False, soft_wrap=True)
    return 0


def _command(*more: str) -> str:
    """This command again, for people, with options that it may lack."""
    given = sys.argv[1:]
    return shlex.join(["python", "sweeps/run.py", *given, *(x for x in more if x not in given)])


if __name__ == "__main__":
    sys.exit(main())
