"""What a command asks for: its options, and the cells that follow from them."""

import argparse
import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import sweeps
from semidavil.config import (
    PRESETS,
    Config,
    ConfigError,
    default_preset,
    parse_settings,
    preset,
    refuse_oracle,
)
from sweeps.plan.checks import Problem, find_problems, runnable
from sweeps.plan.combine import Selection, union
from sweeps.plan.grids import ALL, GRIDS, SEARCH, SHARED_AXES
from sweeps.plan.spec import Job, Spec
from sweeps.run.events import TRAIN
from sweeps.run_options import without_option

if TYPE_CHECKING:  # it imports MLflow
    from sweeps.plan.data import PresentData
    from sweeps.track.store import Store

ROOT = Path(sweeps.__file__).resolve().parents[1]  # the checkout whose code runs
TRAIN_VARIABLE = "SEMIDAVIL_TRAIN"  # another training function, as module:function


class Options(argparse.Namespace):
    """What was given on the command line, by the names that `sweeps.cli.parser` gives."""

    command: str  # such as run
    given: list[str]  # all arguments after it

    def again(self, *more: str) -> str:
        """The same command once more, with options that it may lack."""
        given = [*self.given, *(option for option in more if option not in self.given)]
        return shlex.join(["python", f"sweeps/{self.command}.py", *given])

    def told_to_others(self) -> str:
        """The same command, without what other people should not see: an address to notify is a secret."""
        return shlex.join(
            ["python", f"sweeps/{self.command}.py", *without_option(self.given, "--notify")]
        )


def require_known(name: str, table: Mapping[str, object], what: str) -> None:
    if name not in table:
        close = difflib.get_close_matches(name, table, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"unknown {what} {name!r}{hint} There are: {', '.join(table)}")


@dataclass(frozen=True)
class Request:
    """The grids of a command."""

    jobs: list[Job]  # with the cells that can run
    left_out: list[str]  # why others cannot, a line each
    base: Config  # that all cells are derived from

    @property
    def configs(self) -> list[Config]:
        return union(*(job.configs for job in self.jobs))


def requested(options: Options) -> Request:
    """The grid asked for, or all of them.

    Raises ConfigError for a wrong setting, or if no grid has a cell on these benchmarks with these budgets.
    """
    jobs, left_out, problems = [], [], list[Problem]()
    for name in GRIDS if options.grid in (None, ALL) else [options.grid]:
        spec, base = spec_and_base(options, name)
        try:
            jobs.append(Job(spec, spec.around(base), spec.cells(base)))
        except ConfigError as error:  # of all grids, the others can run
            if options.grid == name:
                raise
            left_out.append(f"{name}: {error}")
    if not jobs:
        raise ConfigError("; ".join(left_out))
    if data_are_here(options, base):
        problems = find_problems(union(*(job.configs for job in jobs)))
    jobs = [replace(job, configs=runnable(job.configs, problems)) for job in jobs]
    return Request(jobs, [*left_out, *map(str, problems)], base)


def data_are_here(options: Options, base: Config) -> bool:
    """Whether this machine, and our own training, can say what is wrong with the data."""
    own = train_function() == TRAIN or base.data.toy or bool(base.runtime.data_root)
    return own and not options.address


def present_data(options: Options, base: Config, read: bool) -> "PresentData":
    """What the command's cells would see now, as far as this machine can say; see `PresentData`."""
    from sweeps.plan.data import PresentData

    if train_function() != TRAIN:
        return PresentData(None, why_not="")  # it has data of its own
    # Generated data are known by their generator, wherever they are.
    here = base.data.toy or data_are_here(options, base)
    return PresentData(base.runtime if here else None, read)


def spec_and_base(options: Options, grid: str) -> tuple[Spec, Config]:
    """What a command asks for of one grid, and the Config that its cells are derived from.

    Raises ConfigError for an unknown name, or a setting that the grid varies or that contradicts another.
    """
    name = options.preset or default_preset(options.data_root)
    require_known(name, PRESETS, "preset")
    settings = settings_of(options)
    for path in settings:
        if path in SHARED_AXES:
            raise ConfigError(f"--set {path}: use {SHARED_AXES[path]} instead")
        if grid in GRIDS and path in GRIDS[grid].baseline:
            raise ConfigError(f"--set {path}: the grid {grid} varies it")
    base = preset(name, settings)
    if base.data.toy and options.data_root:
        raise ConfigError(
            f"the {name} preset draws generated scenes and would leave --data-root "
            f"{options.data_root} alone: use --preset small or paper, or no --data-root"
        )
    refuse_oracle(base)
    lasting = [f"{k}={value}" for k, value in settings.items() if not k.startswith("runtime.")]
    budgets, seeds = tuple(options.budgets or ()), tuple(options.seeds)
    selection = Selection(tuple(options.benchmark), budgets, seeds)
    return Spec(grid, name, tuple(lasting), (selection,)), base


def settings_of(options: Options) -> dict[str, str]:
    """The settings of a command with those of `runtime` that this machine needs, unless they are given."""
    settings = {"runtime.cache_dir": str(ROOT / "data")}
    if options.data_root:
        settings["runtime.data_root"] = options.data_root
    if (gpus := options.gpus_per_trial or 0) > 1:  # each is driven by a process of its own
        settings["runtime.world_size"] = f"{gpus:g}"
    settings.update(parse_settings(options.settings))
    for path in ("runtime.data_root", "runtime.cache_dir"):
        if settings.get(path):  # workers may run in another folder
            settings[path] = str(Path(settings[path]).expanduser().resolve())
    return settings


def train_function() -> str:
    return os.environ.get(TRAIN_VARIABLE, TRAIN)


def searched(options: Options) -> tuple[Spec, Config]:
    """The spec of a search, and the Config that it starts from.

    Raises ConfigError for several benchmarks, numbers of labels or seeds, or a seed that confirms itself.
    """
    spec, base = spec_and_base(options, SEARCH)
    chosen: dict[str, Sequence[object] | None] = {
        "data.benchmark": options.benchmark, "data.budget": options.budgets, "seed": options.seeds
    }  # fmt: skip
    changes: dict[str, object] = {}
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
    return replace(spec, trials=options.trials), base


def open_store(options: Options) -> "Store":
    """The tracking store that the environment names, with the command's storage.

    Raises TrackingError if it names no store, ConfigError if nothing can be kept in that storage.
    """
    from sweeps.keep.storage import open_storage
    from sweeps.track.store import Store

    storage = open_storage(options.storage) if options.storage else None
    return Store(ROOT, os.environ.get("MLFLOW_TRACKING_URI"), storage)
