"""What a command asks for: its options, and the cells that follow from them."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from semidavil.config import (
    PRESETS,
    Config,
    ConfigError,
    default_preset,
    parse_settings,
    preset,
    refuse_oracle,
)
from semidavil.data.own import BENCHMARKS_BY_NAME, is_own, own_benchmarks
from semidavil.descriptions import DescriptionError
from semidavil.place import command, home
from semidavil.plugins import provider
from sweeps.plan.checks import Problem, find_problems, runnable
from sweeps.plan.combine import Selection, union
from sweeps.plan.grid import require_known
from sweeps.plan.grids import ALL, GRIDS, SEARCH, SHARED_AXES
from sweeps.plan.narrow import require_present, values_of, variations
from sweeps.plan.needs import Lacking, lacking
from sweeps.plan.spec import Job, Spec
from sweeps.run.events import TRAIN
from sweeps.run_options import without_option

if TYPE_CHECKING:  # it imports MLflow
    from sweeps.plan.data import PresentData
    from sweeps.track.store import Store

ROOT = home()
TRAIN_VARIABLE = "SEMIDAVIL_TRAIN"  # another training function, as module:function


class Options(argparse.Namespace):
    """What was given on the command line, by the names that `sweeps.cli.parser` gives."""

    command: str  # such as run
    given: list[str]  # all arguments after it
    from_file: dict[str, str]  # settings of --config

    def again(self, *more: str) -> str:
        """The same command once more, with options that it may lack."""
        given = [*self.given, *(option for option in more if option not in self.given)]
        return f"{command(self.command)} {shlex.join(given)}"

    def told_to_others(self) -> str:
        """The same command, without what other people should not see: an address to notify is a secret."""
        return f"{command(self.command)} {shlex.join(without_option(self.given, '--notify'))}"


def require_benchmark(name: str) -> None:
    """Raises ConfigError for a benchmark that is neither built in, nor a plugin's, nor a file."""
    if not is_own(name):
        require_known(name, BENCHMARKS_BY_NAME, "benchmark")


@dataclass(frozen=True)
class Request:
    """The grids of a command."""

    jobs: list[Job]  # with the cells that can run
    left_out: list[str]  # why others cannot, a line each
    base: Config  # that all cells are derived from
    notes: list[str] = field(default_factory=list)  # what is to be said before

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
            jobs.append(_job(spec, base))
        except ConfigError as error:  # of all grids, the others can run
            if options.grid == name:
                raise
            left_out.append(f"{name}: {error}")
    if not jobs:
        raise ConfigError("; ".join(left_out))
    if data_are_here(options, base):
        problems = find_problems(union(*(job.configs for job in jobs)))
    jobs = [replace(job, configs=runnable(job.configs, problems)) for job in jobs]
    lacks = missing_here(options, union(*(job.configs for job in jobs)))
    jobs = [replace(job, lacking=lacks) for job in jobs]
    notes = _notes(options, [job.spec for job in jobs], base)
    return Request(jobs, [*left_out, *map(str, problems)], base, notes)


def _notes(options: Options, specs: Sequence[Spec], base: Config) -> list[str]:
    """What follows from the settings that their reader may not expect."""
    told, given = [], {**options.from_file, **parse_settings(options.settings)}
    usual = preset(specs[0].preset).training.warmup_steps
    if "training.warmup_steps" not in given and base.training.warmup_steps != usual:
        told.append(
            f"training.warmup_steps is {base.training.warmup_steps}, not the preset's {usual}: it was "
            f"shortened with training.steps={base.training.steps}"
        )
    for spec in specs:
        for path in (path for path in given if path in GRIDS[spec.grid].baseline):
            if any(one.startswith(f"{path}=") for one in spec.selections[0].only):
                told.append(
                    f"the grid {spec.grid} varies {path}: of its runs, those with {given[path]} are left"
                )
    return told


def _job(spec: Spec, base: Config) -> Job:
    """Raises ConfigError if the grid has no such cell, or none with a value that was asked for."""
    grid, (selection,) = spec.around(base), spec.selections
    require_present(spec.all_cells(base, selection), selection.only, grid)
    cells = spec.cells(base)
    if not cells:
        raise ConfigError(f"no run has all of --only {' '.join(selection.only)}: name fewer")
    used = {provider("GRIDS", spec.grid), *(id for cell in cells for id in cell.plugins)}
    return Job(replace(spec, plugins=tuple(sorted(filter(None, used)))), grid, cells)


def data_are_here(options: Options, base: Config) -> bool:
    """Whether this machine, and our own training, can say what is wrong with the data."""
    own = train_function() == TRAIN or base.data.toy or bool(base.runtime.data_root)
    return own and not options.address


def missing_here(options: Options, configs: Sequence[Config]) -> Lacking:
    """What runs need that is not here, where they run here and by our own training."""
    return {} if options.address or train_function() != TRAIN else lacking(configs)


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
    given = settings_of(options)
    name = options.preset or default_preset(options.data_root or given.get("runtime.folders", ""))
    require_known(name, PRESETS, "preset")
    varied = GRIDS[grid].baseline if grid in GRIDS else {}
    settings, swept, only = dict[str, str](), list[str](), list[str](options.only)
    for path, text in {**_of_file(options, varied), **given}.items():
        if path in SHARED_AXES:
            raise ConfigError(f"--set {path}: use {SHARED_AXES[path]} instead")
        values = values_of(path, text)
        if path in varied:
            only.append(f"{path}={text}")
        elif len(values) == 1:
            settings[path] = values[0]
        elif path.startswith("runtime."):
            raise ConfigError(f"--set {path}={text}: it changes no result, and has one value")
        else:
            swept.append(f"{path}={text}")
    if grid == SEARCH and (swept or only):
        raise ConfigError(
            f"a search has one value of each setting, not {' '.join([*swept, *only])}"
        )
    base = preset(name, settings)
    variations(base, swept)  # a wrong value is refused
    if base.data.toy and options.data_root:
        raise ConfigError(
            f"the {name} preset draws generated scenes and would leave --data-root "
            f"{options.data_root} alone: use --preset small or paper, or no --data-root"
        )
    refuse_oracle(base)
    lasting = [f"{k}={value}" for k, value in settings.items() if not k.startswith("runtime.")]
    budgets, seeds = tuple(options.budgets or ()), tuple(options.seeds or (0,))
    selection = Selection(tuple(chosen_benchmarks(options)[0]), budgets, seeds, tuple(only))
    return Spec(grid, name, tuple(lasting), (selection,), swept=tuple(swept)), base


def _of_file(options: Options, varied: Mapping[str, object]) -> dict[str, str]:
    """Settings of --config but those that the grid varies, of which the file holds one value."""
    return {path: text for path, text in options.from_file.items() if path not in varied}


def settings_of(options: Options) -> dict[str, str]:
    """The settings of a command with those of `runtime` that this machine needs, unless they are given."""
    settings = {"runtime.cache_dir": str(ROOT / "data")}
    if options.data_root:
        settings["runtime.data_root"] = options.data_root
    if (gpus := options.gpus_per_trial or 0) > 1:  # each is driven by a process of its own
        settings["runtime.world_size"] = f"{gpus:g}"
    settings.update(chosen_benchmarks(options)[1] | parse_settings(options.settings))
    for path in ("runtime.data_root", "runtime.cache_dir"):
        if settings.get(path):  # workers may run in another folder
            settings[path] = str(Path(settings[path]).expanduser().resolve())
    return settings


def chosen_benchmarks(options: Options) -> tuple[list[str], dict[str, str]]:
    """The names of the benchmarks asked for, and what those need that come from files.

    Raises ConfigError for a file that is wrong.
    """
    try:
        return own_benchmarks(options.benchmark, options.data_root)
    except DescriptionError as error:
        raise ConfigError(str(error)) from None


def train_function() -> str:
    return os.environ.get(TRAIN_VARIABLE, TRAIN)


def searched(options: Options) -> tuple[Spec, Config]:
    """The spec of a search, and the Config that it starts from.

    Raises ConfigError for several benchmarks, numbers of labels or seeds, or a seed that confirms itself.
    """
    spec, base = spec_and_base(options, SEARCH)
    chosen: dict[str, Sequence[object] | None] = {
        "data.benchmark": chosen_benchmarks(options)[0], "data.budget": options.budgets, "seed": options.seeds
    }  # fmt: skip
    changes: dict[str, object] = {}
    for path, values in chosen.items():
        if values and len(values) > 1:
            raise ConfigError(
                f"a search has one value of {path}: give {SHARED_AXES[path]} one, not {len(values)}"
            )
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
    return replace(spec, trials=options.trials, plugins=base.plugins), base


def open_store(options: Options) -> "Store":
    """The tracking store that the environment names, with the command's storage.

    Raises TrackingError if it names no store, ConfigError if nothing can be kept in that storage.
    """
    from sweeps.keep.storage import open_storage
    from sweeps.track.store import Store

    storage = open_storage(options.storage) if options.storage else None
    return Store(ROOT, os.environ.get("MLFLOW_TRACKING_URI"), storage)
