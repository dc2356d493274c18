"""The commands that make some tracked runs once more: benchmark, budgets, seeds, variants, data, settings.

`FILE` stands for the description of a benchmark of the user's own, which is not kept by its path, and for the
plugin of a grid whose runs use nothing else of it.
"""

import itertools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.cells import varied_by
from analysis.runs import command, default_settings
from analysis.style import setting_text
from semidavil.config import PRESETS, Config, ConfigError, owner_of, preset
from sweeps.plan.grid import short
from sweeps.plan.grids import GRIDS, SEARCH, SHARED_AXES
from sweeps.plan.narrow import VARIANT


def commands(runs: pd.DataFrame, grid: str) -> list[str]:
    """A command for each preset, folder of data and choice of settings, most runs first.

    Args:
        runs: rows of `load_runs`.
    """
    groups: dict[tuple[str, ...], list[Any]] = {}
    for _, here in runs.groupby(
        ["benchmark", "env/preset", "runtime.data_root", "runtime.eval_every"]
    ):
        for options, some in _settings_of(here, grid):
            groups.setdefault(options, []).append(some)
    joined = {options: pd.concat(parts) for options, parts in groups.items()}
    ordered = sorted(joined.items(), key=lambda one: -len(one[1]))
    return [_command(grid, options, some) for options, some in ordered]


def _settings_of(runs: pd.DataFrame, grid: str) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Runs of one preset by the options, but for the axes, that they were made with."""
    first = runs.iloc[0]
    name = first["env/preset"] if first["env/preset"] in PRESETS else "paper"
    base = dict(preset(name).settings(of_all_methods=True))
    varied = {*SHARED_AXES, *(varied_by(grid, runs) if grid != SEARCH else ())}
    fixed = [s for s in default_settings() if s not in varied and owner_of(s) is None]
    place = first["runtime.data_root"]
    root = ["--data-root", place] if place and not first["toy"] else []
    if grid == SEARCH:  # its settings are what it chooses
        return [(("--preset", name, *root), runs)]
    found = []
    for _, here in runs.groupby(fixed, dropna=False):
        own = {s: owner for s in default_settings() if (owner := owner_of(s))}
        values = {s: here[s].iloc[0] for s in fixed}
        values |= {s: mine[s].iloc[0] for s, owner in own.items()
                   if len(mine := here[here["method"] == owner])}  # fmt: skip
        changed = {s: v for s, v in values.items() if not _same(v, base[s])}
        every = int(first["runtime.eval_every"])
        if every != preset(name).runtime.eval_every:
            changed["runtime.eval_every"] = every
        for given_otherwise in ("data.toy", "data.own"):  # by the preset, or by data; by a file
            changed.pop(given_otherwise, None)
        given = [f"{s}={setting_text(v)}" for s, v in changed.items()]
        given += [] if grid in GRIDS else _swept(here, varied)
        found.append((("--preset", name, *root, *(["--set", *given] if given else [])), here))
    return found


def _swept(runs: pd.DataFrame, varied: Iterable[str]) -> list[str]:
    """Of an own grid, the settings that `--set` gave several values, in the order of its variants' names."""
    found = {}
    for setting in varied:
        values = runs[setting].tolist()
        ends = [f"+{short(setting)}={v if isinstance(v, str) else json.dumps(v)}+" for v in values]
        places = [f"{name}+".find(end) for name, end in zip(runs["named"], ends, strict=True)]
        if min(places) >= 0:
            text = _listed(dict.fromkeys(map(setting_text, values)))
            found[f"{setting}={text}"] = places[0]
    return sorted(found, key=lambda given: found[given])


def _same(value: Any, other: Any) -> bool:
    return bool(value == (tuple(other) if isinstance(other, list | tuple) else other))


def _command(grid: str, options: tuple[str, ...], runs: pd.DataFrame) -> str:
    own = runs["data.own"] != ""  # of a user's file, a run knows the content alone
    known = sorted(runs["benchmark"][~own].unique())
    given = ["--benchmark", *known, *(["FILE"] if own.any() else [])]
    given += (plugins := plugin_options(runs["plugins"].unique()))
    given += _choice(grid, options, runs)
    given += ["--seeds", *map(str, sorted(map(int, runs["seed"].unique())))]
    if grid == SEARCH:
        given += ["--trials", str(len(runs))]
    place = "" if plugins or grid in (*GRIDS, SEARCH) else "FILE:"
    return f"{command(place + grid)} {shlex.join([*given, *options])}"


def plugin_options(plugins: Iterable[str]) -> list[str]:
    """`--plugin` and the files that runs use something of; nothing where they use none.

    Args:
        plugins: of each run, its param of that name.
    """
    files = {name.partition("@")[0] for text in plugins for name in json.loads(text)}
    return ["--plugin", *sorted(files)] if files else []


def _choice(grid: str, options: tuple[str, ...], runs: pd.DataFrame) -> list[str]:
    """`--budgets` and `--only`, where the grid has others than these runs.

    A user's own grid, whose file is not read, has both: its variants are those that its runs are named by.
    """
    places = set(zip(runs["benchmark"], runs["budget"], strict=True))
    budgets = sorted({int(budget) for _, budget in places})
    only: list[str] = []
    if grid in GRIDS:
        for given in ((), budgets):
            only, left = _only(grid, _cells(grid, options, runs["benchmark"].unique(), given), runs)
            if {(cell.data.benchmark, cell.data.budget) for cell in left} == places:
                break
        budgets = list(given)
    elif grid != SEARCH and (runs["experiment"] == grid).all():
        only = [f"{VARIANT}={_listed(runs['named'].unique())}"]
    return [
        *(["--budgets", *map(str, budgets)] if budgets else []),
        *(["--only", *only] if only else []),
    ]


def _cells(
    grid: str, options: tuple[str, ...], benchmarks: Iterable[str], budgets: Sequence[int]
) -> list[Config]:
    """The cells of one seed that a command has without `--only`; none where it would be refused here."""
    settings = options[options.index("--set") + 1 :] if "--set" in options else ()
    changes: Mapping[str, str] = dict(s.split("=", 1) for s in settings)
    try:
        return GRIDS[grid].cells(preset(options[1], changes), list(benchmarks), budgets)
    except ConfigError:
        return []


def _only(
    grid: str, cells: Sequence[Config], runs: pd.DataFrame
) -> tuple[list[str], Sequence[Config]]:
    """What `--only` takes to leave these variants of the cells, settings or else names; the cells left."""
    axes = list(GRIDS[grid].baseline)
    settings = (dict(cell.settings(of_all_methods=True)) for cell in cells)
    every = pd.DataFrame([[setting_text(of[x]) for x in axes] for of in settings], columns=axes)
    mine = runs[axes].map(setting_text)
    known, made = map(pd.MultiIndex.from_frame, (every, mine))
    there, fits = known.isin(made), every.isin(mine.to_dict("list")).all(axis=1).to_numpy()
    if there.all():
        return [], cells
    if (there == fits).all() or not made.isin(known).all():  # a plugin's variants have no name here
        narrower = [axis for axis in axes if not every[axis].isin(mine[axis]).all()]
        only = [f"{axis}={_listed(sorted(set(mine[axis])))}" for axis in narrower]
        return only, list(itertools.compress(cells, fits))
    left = list(itertools.compress(cells, there))
    return [f"{VARIANT}={_listed(dict.fromkeys(map(GRIDS[grid].variant, left)))}"], left


def _listed(values: Iterable[str]) -> str:
    """As `sweeps.plan.narrow.values_of` reads them: a comma within a value, or no letter, takes quotes."""
    quoted = (
        json.dumps(v, ensure_ascii=False) if not v or set(v) & set(",()[]") else v for v in values
    )
    return ",".join(quoted)
