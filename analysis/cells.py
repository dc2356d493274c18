"""The runs of a grid that may be compared, as one tidy frame: one run for each cell.

    cells = select(tracked, "attention", "fusion")       # unique on benchmark, budget, variant and seed
    cells = cells.at_one_budget(wanted=100)              # for what compares variants at one budget
    over_budgets(cells.of("gta5-cityscapes"))            # mean, spread and number of seeds

Two budgets, settings, versions of the code's results or runs of one cell are never averaged: what does not
belong to the rest is left out with a reason, and what would be two in one number is an error.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis import style
from analysis.captioners import captioners_sentence
from analysis.runs import AnalysisError, Tracked, default_settings
from analysis.stats import over_seeds
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import RESULTS_VERSION, owner_of
from semidavil.marks import MEANING, mark
from semidavil.names import METHODS
from sweeps.plan.grids import GRIDS

KEY = ["benchmark", "budget", "variant", "seed"]
# Every grid varies these.
SHARED = ("data.benchmark", "data.budget", "seed")
# Of settings that differ, the first to be named; `MOST` are.
TELLING, MOST = ("data.toy", "model.vlm", "training.steps"), 3
MOST_NAMED = 4  # variants that a sentence names; of more it says the number


@dataclass(frozen=True)
class Cells:
    """Comparable runs of one grid.

    Attributes:
        runs: rows of `load_runs` with a column `variant`, unique on `KEY`; of each benchmark one setting.
        left_out: how many runs of the grid are not among them, by the reason.
        unfinished: cells without a result: `variant` and `why` (failed, diverged, running, ...).
    """

    runs: pd.DataFrame
    left_out: Mapping[str, int]
    unfinished: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["variant", "why"])
    )

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.runs["run_id"]))

    @property
    def benchmarks(self) -> list[str]:
        """In the order in which the harness lists them."""
        return in_order(self.runs["benchmark"], BENCHMARKS)

    def of(self, benchmark: str) -> pd.DataFrame:
        return self.runs[self.runs["benchmark"] == benchmark]

    def mark(self, benchmark: str) -> str:
        """`toy`, `bundled CLIP` or nothing; see `semidavil.marks`."""
        here = self.of(benchmark)
        return mark(benchmark, bool(here["toy"].all()), str(here["vlm"].iloc[0]))

    def heading(self, benchmark: str) -> str:
        """`GTA5 → Cityscapes (toy)`."""
        told = self.mark(benchmark)
        return style.benchmark_name(benchmark) + (f" ({told})" if told else "")

    def only(self, variants: Sequence[str]) -> "Cells":
        """What a figure shows; the others are in other figures."""
        return replace(self, runs=self.runs[self.runs["variant"].isin(variants)])

    def at_one_budget(self, wanted: int | None = None) -> "Cells":
        """Per benchmark, the runs at the label budget that most variants have.

        Of equals `wanted`, else the smallest above 0. Runs that draw no target image have no budget: they
        stay.
        """
        kept = [_one_budget(here, wanted) for _, here in self.runs.groupby("benchmark")]
        runs = pd.concat(kept, ignore_index=True)
        others = sorted(set(self.runs["budget"]) - set(runs["budget"]))
        reasons = dict(self.left_out)
        if (count := len(self.runs) - len(runs)) > 0:
            budgets = f" ({', '.join(f'{b:,}' for b in others)})" if others else ""
            reasons[f"at other label budgets{budgets}"] = count
        return replace(self, runs=runs, left_out=reasons)

    def classes(self, benchmark: str) -> list[str]:
        """The classes of a benchmark; of one that is not known here, those of its runs' metrics."""
        if benchmark in BENCHMARKS:
            return list(BENCHMARKS[benchmark].classes)
        return classes_of(self.of(benchmark).dropna(axis=1, how="all"))

    def without_result(self, variant: str = "") -> str:
        """`2 diverged, 1 running`; of one variant, or by variant: `VLGA: 2 diverged`."""
        here = self.unfinished
        there = list(here["variant"].unique())
        if not variant and len(there) <= MOST_NAMED:
            return "; ".join(f"{style.label(v)}: {self.without_result(v)}" for v in there)
        counts = (here[here["variant"] == variant] if variant else here)["why"].value_counts()
        return ", ".join(f"{n} {why}" for why, n in counts.sort_index().items())

    def note(self) -> str:
        """What every caption says of where its runs come from."""
        steps = " or ".join(f"{int(n):,}" for n in sorted(self.runs["steps"].unique()))
        told = [f"{steps} training steps."]
        if captioners := captioners_sentence(self.runs):
            told.append(captioners)
        for name in dict.fromkeys(filter(None, map(self.mark, self.benchmarks))):
            told.append(f"{name[0].upper()}{name[1:]}: {MEANING[name]}.")
        told += [*_version_note(self.runs), *_provenance(self.runs)]
        if unfinished := self.without_result():
            told.append(f"Without a result: {unfinished}.")
        if self.left_out:
            parts = [f"{count} {reason}" for reason, count in self.left_out.items()]
            told.append(f"Runs left out: {'; '.join(parts)}.")
        return " ".join(told)


def select(
    tracked: Tracked,
    grid: str,
    variant: str | Sequence[str],
    metric: str = "miou",
) -> Cells:
    """The runs of a grid that may be compared.

    Of the newest version of results; per benchmark one setting: real data before generated, then the most
    runs, then the longest training. What a grid varies on purpose is no part of the setting.

    Args:
        variant: the column, or columns, that tell the variants apart.
        metric: a final metric that every run must have.

    Raises:
        AnalysisError: no such run, or two runs of one cell.
    """
    mine = tracked.of_grid(grid)
    scored = mine[mine[metric].notna()] if metric in mine else mine.iloc[:0]
    if scored.empty:
        raise AnalysisError(_why_unscored(mine, metric, grid))
    left_out = Counter[str]()
    if undefined := len(mine) - len(scored):
        left_out[f"without a defined {metric}"] = undefined
    newest = scored["version"].max()
    for version, runs in scored[scored["version"] < newest].groupby("version"):
        known = version or "unknown"  # 0: of runs that say none
        left_out[f"of results version {known}"] = len(runs)
    runs = scored[scored["version"] == newest]

    varied = {*SHARED, *varied_by(grid, runs)}
    fixed = [s for s in default_settings() if s not in varied and owner_of(s) is None]
    kept = []
    for _, here in runs.groupby("benchmark"):
        groups = [group for _, group in here.groupby(fixed, dropna=False)]
        groups.sort(key=lambda g: (bool(g["toy"].iloc[0]), -len(g), -int(g["steps"].iloc[0])))
        kept.append(_of_one_recipe(groups[0], left_out))
        for other in groups[1:]:
            left_out[f"with {_differences(other, groups[0], fixed)}"] += len(other)
    chosen = pd.concat(kept, ignore_index=True)
    names = [variant] if isinstance(variant, str) else list(variant)
    chosen["variant"] = _joined(chosen, names)
    chosen = _of_newest_plugins(chosen, left_out)
    _require_unique(chosen)
    open_ = tracked.unfinished(grid)
    open_ = open_[open_["benchmark"].isin(chosen["benchmark"])]
    return Cells(chosen, dict(left_out), open_.assign(variant=_joined(open_, names)))


def varied_by(grid: str, runs: pd.DataFrame) -> set[str]:
    """The settings that a grid varies on purpose.

    Of a user's own grid, whose file is not read, those which differ between its variants and within none.
    """
    if grid in GRIDS:
        return set(GRIDS[grid].baseline)
    within = runs.groupby("named")
    return {
        setting
        for setting in default_settings()
        if runs[setting].nunique(dropna=False) > 1
        and within[setting].nunique(dropna=False).max() == 1
    }


def _joined(runs: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    joined = runs[names[0]].astype(str)
    for name in names[1:]:
        joined = joined + "+" + runs[name].astype(str)
    return joined


def _of_newest_plugins(runs: pd.DataFrame, left_out: Counter[str]) -> pd.DataFrame:
    """Of each variant that versions of a user's file have defined, the runs of the version that ran last."""
    newest = runs.loc[runs.groupby(["benchmark", "variant"])["ended"].idxmax()]
    last = newest.set_index(["benchmark", "variant"])["plugins"]
    wanted = last.loc[list(zip(runs["benchmark"], runs["variant"], strict=True))].to_numpy()
    old = runs["plugins"] != wanted
    for plugins in runs.loc[old, "plugins"]:
        names = ", ".join(json.loads(plugins)) or "none"
        left_out[f"of another version of a plugin ({names})"] += 1
    return runs[~old].reset_index(drop=True)


def _of_one_recipe(runs: pd.DataFrame, left_out: Counter[str]) -> pd.DataFrame:
    """Of each method with settings of its own, the runs at those that most of them have."""
    owners = {s: owner for s in default_settings() if (owner := owner_of(s))}
    for method in set(owners.values()):
        own = [setting for setting, owner in owners.items() if owner == method]
        groups = [group for _, group in runs[runs["method"] == method].groupby(own)]
        groups.sort(key=lambda group: -len(group))
        for other in groups[1:]:
            left_out[f"with {_differences(other, groups[0], own)}"] += len(other)
            runs = runs.drop(other.index)
    return runs


def _why_unscored(runs: pd.DataFrame, metric: str, grid: str) -> str:
    """Runs without the score are there: running the grid again would make the same ones."""
    return (
        f"none of the {len(runs)} finished runs of {grid} has a defined {metric}: no class is in the "
        "validation labels, nor was one predicted, or its benchmark is scored by another metric. Look at the "
        "labels (python -m semidavil data); then run it with --retry-failed"
    )


def _differences(runs: pd.DataFrame, others: pd.DataFrame, settings: Sequence[str]) -> str:
    """`training.steps=900, training.lr=0.1 and 2 more`: how one setting differs from another."""
    one, other = runs.iloc[0], others.iloc[0]
    names = [name for name in settings if _is_other(one[name], other[name])]
    names.sort(key=lambda name: TELLING.index(name) if name in TELLING else len(TELLING))
    told = ", ".join(f"{name}={style.setting_text(one[name])}" for name in names[:MOST])
    return told + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def _is_other(one: Any, other: Any) -> bool:
    return bool(one != other) and not (one != one and other != other)


def _require_unique(runs: pd.DataFrame) -> None:
    """Raises AnalysisError where two runs are of one cell: their mean would be of two things."""
    twice = runs[runs.duplicated(KEY, keep=False)]
    if twice.empty:
        return
    benchmark, budget, variant, seed = (twice.iloc[0][name] for name in KEY)
    same = (twice[KEY] == twice.iloc[0][KEY]).all(axis=1)
    first, second = twice[same].iloc[0], twice[same].iloc[1]
    text = style.setting_text
    how = "; ".join(f"{name} is {text(first[name])} and {text(second[name])}"
                    for name in default_settings() if _is_other(first[name], second[name]))  # fmt: skip
    raise AnalysisError(
        f"{benchmark}, {variant}, {budget} labels, seed {seed} has several runs, such as {first['run_id']} "
        f"and {second['run_id']} ({how or 'no setting differs'}): delete in MLflow those that are not meant"
    )


def _one_budget(runs: pd.DataFrame, wanted: int | None) -> pd.DataFrame:
    """See `Cells.at_one_budget`; the runs of one benchmark."""
    without = runs["method"].map(
        lambda name: name in METHODS and METHODS[name].streams == {"source"}
    )
    counts = runs[~without].groupby("budget")["variant"].nunique()
    if counts.empty:
        return runs
    budget = min(counts.index, key=lambda b: (-counts[b], b != wanted, b == 0, b))
    return runs[without | (runs["budget"] == budget)]


def _version_note(runs: pd.DataFrame) -> list[str]:
    version = int(runs["version"].iloc[0])
    if version in (0, RESULTS_VERSION):
        return []
    return [f"Results version {version}; the present code's is {RESULTS_VERSION}."]


def _provenance(runs: pd.DataFrame) -> list[str]:
    """Which variants were made by other code, on another device or from other data than the rest."""
    told = []
    changed = runs["env/changes"].map(lambda c: f" with {c}" if c.startswith("code/") else "")
    made_by = {"code": runs["env/commit"].str[:8] + changed, "device": runs["env/device"],
               "preset": runs["env/preset"]}  # fmt: skip
    for what, values in made_by.items():
        if found := _odd_ones(runs["variant"], values):
            told.append(f"Not all runs are by the same {what}: {found}.")
    for _, here in runs.groupby("benchmark"):
        seen = [
            dict(word.split("=", 1) for word in text.split() if "=" in word)
            for text in here["data"]
        ]
        for part in sorted({name for one in seen for name in one}):
            values = pd.Series([one.get(part, "") for one in seen], index=here.index)
            known = values != ""
            if found := _odd_ones(here["variant"][known], values[known]):
                told.append(f"Not all runs saw the same {part}: {found}.")
    return told


def _odd_ones(variants: pd.Series, values: pd.Series) -> str:
    """`DLG: a; VLGA, WPCT: b` where variants differ in a value; empty where there is one alone."""
    if values.nunique() < 2:
        return ""
    by_values: dict[tuple[str, ...], list[str]] = {}
    for variant, of_variant in values.groupby(variants):
        found = tuple(sorted(str(value) or "unknown" for value in of_variant.unique()))
        by_values.setdefault(found, []).append(style.label(str(variant)))
    named = {
        v: ", ".join(n) if len(n) <= MOST_NAMED else f"{len(n)} variants"
        for v, n in by_values.items()
    }
    return "; ".join(f"{names}: {' and '.join(values)}" for values, names in named.items())


def classes_of(runs: pd.DataFrame) -> list[str]:
    """The classes that runs have an IoU of."""
    start = "iou/"
    return [name.removeprefix(start) for name in runs.columns if name.startswith(start)]


def over_budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and budget, see `over_seeds`."""
    return over_seeds(runs, ["variant", "budget"])


def by_seed(runs: pd.DataFrame, metric: str = "miou") -> pd.Series:
    """A metric of one variant at one budget of one benchmark, indexed by seed.

    Raises:
        ValueError: a seed has several runs.
    """
    if not runs["seed"].is_unique:
        raise ValueError(f"several runs have seed {runs['seed'].mode().iloc[0]}")
    return runs.set_index("seed")[metric]


def in_order(names: Iterable[Any], known: Iterable[str]) -> list[str]:
    """Those that are there: known ones in their order, then others."""
    there, ours = set(map(str, names)), list(known)
    return [n for n in ours if n in there] + sorted(there - set(ours))


def seeds_of(counts: Iterable[float]) -> str:
    """`1 seed`, `3 seeds`, `2 to 3 seeds`."""
    low, high = min(seen := [int(n) for n in counts]), max(seen)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} seed{'' if high == 1 else 's'}"
