"""What a command asks for: its options, and the cells that follow from them."""

import argparse
import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import sweeps
from semidavil.commandline import default_preset, parse_settings
from semidavil.config import PRESETS, Config, ConfigError
from sweeps.plan.checks import Problem, find_problems, runnable
from sweeps.plan.grids import ALL, GRIDS, SEARCH, union
from sweeps.plan.spec import Job, Selection, Spec
from sweeps.run.events import TRAIN

ROOT = Path(sweeps.__file__).resolve().parents[1]  # the checkout whose code runs
TRAIN_VARIABLE = "SEMIDAVIL_TRAIN"  # another training function, as module:function


class Options(argparse.Namespace):
    """What was given on the command line; those of `status` and `deliver` have the last few alone."""

    command: str
    given: list[str]  # all arguments after the command
    grid: str | None
    benchmark: list[str]
    budgets: list[int] | None
    seeds: list[int]
    preset: str | None
    data_root: str
    settings: list[str]
    list_only: bool
    rerun: str | None
    retry_failed: bool
    trials: int
    objective: str
    confirm_seeds: list[int]
    retries: int
    wait: bool
    concurrency: int | None
    gpus_per_trial: float | None
    cpus_per_trial: int | None
    address: str | None
    storage: str
    watch: float | None

    def again(self, *more: str) -> str:
        """The same command once more, with options that it may lack."""
        given = [*self.given, *(option for option in more if option not in self.given)]
        return shlex.join(["python", f"sweeps/{self.command}.py", *given])


def require_known(name: str, table: Mapping[str, object], what: str) -> None:
    if name not in table:
        close = difflib.get_close_matches(name, table, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"unknown {what} {name!r}{hint} There are: {', '.join(table)}")


@dataclass(frozen=True)
class Request:
    """The grids of a command.

    Attributes:
        jobs: with the cells that can run.
        left_out: why others cannot, a line each.
        base: the Config that all cells are derived from.
    """

    jobs: list[Job]
    left_out: list[str]
    base: Config

    @property
    def configs(self) -> list[Config]:
        return union(*(job.configs for job in self.jobs))


def requested(options: Options) -> Request:
    """The grid asked for, or all of them.

    Raises:
        ConfigError: a wrong setting; or no grid has a cell on these benchmarks with these budgets.
    """
    jobs, left_out, problems = [], [], list[Problem]()
    for name in list(GRIDS) if options.grid in (None, ALL) else [options.grid]:
        spec = spec_of(options, str(name))
        base = spec.base(runtime_settings(options))
        try:
            configs = spec.cells(base)
        except ConfigError as error:  # of all grids, the others can run
            if options.grid == name:
                raise
            left_out.append(f"{name}: {error}")
            continue
        jobs.append(Job(spec, spec.around(base), configs))
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


def spec_of(options: Options, grid: str) -> Spec:
    """What a command asks for of one grid, with absolute folders.

    Raises:
        ConfigError: an unknown preset, or a setting that cannot be read.
    """
    name = options.preset or default_preset(options.data_root)
    require_known(name, PRESETS, "preset")
    settings = parse_settings(options.settings)
    for path in ("runtime.data_root", "runtime.cache_dir"):
        if settings.get(path):  # workers may run in another folder
            settings[path] = absolute(settings[path])
    budgets = None if options.budgets is None else tuple(options.budgets)
    return Spec(
        grid=grid,
        preset=name,
        settings=tuple(f"{path}={value}" for path, value in settings.items()),
        selections=(Selection(tuple(options.benchmark), budgets, tuple(options.seeds)),),
        data_root=absolute(options.data_root) if options.data_root else "",
    )


def runtime_settings(options: Options) -> dict[str, str]:
    """What this machine adds to the settings of a command, unless the command has set it."""
    settings = {
        "runtime.data_root": absolute(options.data_root) if options.data_root else "",
        "runtime.cache_dir": str(ROOT / "data"),
    }
    if (gpus := options.gpus_per_trial or 0) > 1:  # each is driven by a process of its own
        settings["runtime.world_size"] = f"{gpus:g}"
    return settings


def absolute(folder: str) -> str:
    return str(Path(folder).expanduser().resolve())


def train_function() -> str:
    return os.environ.get(TRAIN_VARIABLE, TRAIN)


def searched(options: Options) -> tuple[Spec, Config]:
    """The spec of a search, and the Config that it starts from.

    Raises:
        ConfigError: several benchmarks, numbers of labels or seeds; a seed that would confirm itself.
    """
    spec = spec_of(options, SEARCH)
    base = spec.base(runtime_settings(options))
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
    return replace(spec, objective=options.objective, trials=options.trials), base
