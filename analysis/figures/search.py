"""What Optuna's searches found: scores in order, what mattered, the trade-off with latency."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.cells import Cells
from analysis.drawn import Drawn
from analysis.panels import legend, panels
from analysis.runs import AnalysisError, NoRunError, Tracked, command
from analysis.stats import pareto_front
from analysis.tables.entries import LATENCY
from semidavil.benchmarks import BENCHMARKS
from sweeps.plan.grids import OBJECTIVES, SEARCH

GRID, FOLDER = SEARCH, "studies"


@dataclass(frozen=True)
class Study:
    """A search: its trials, the importances of its settings, and the finished runs among the trials."""

    name: str
    trials: pd.DataFrame
    importances: pd.DataFrame
    cells: Cells

    @cached_property
    def done(self) -> pd.DataFrame:
        return self.trials[self.trials["state"] == "complete"]

    @property
    def default(self) -> pd.DataFrame:
        """The trial at the preset's values, if it has finished."""
        return self.done[self.done["preset"]]

    @property
    def score(self) -> str:
        """What its benchmark is scored by."""
        return BENCHMARKS[str(self.cells.runs["benchmark"].iloc[0])].score

    def panel(self, height: float) -> tuple[Figure, Axes]:
        frame = panels([self.name], 1, height)
        ((ax,),) = frame.axes
        places = self.cells.runs[["benchmark", "budget"]].drop_duplicates().values
        heading = "; ".join(f"{self.cells.heading(str(b))}, {n:,} labels" for b, n in places)
        ax.set_title(heading, loc="left")
        return frame.figure, ax

    def drawn(
        self, figure: Figure, title: str, numbers: pd.DataFrame, caption: str, alt: str
    ) -> Drawn:
        caption = f"{caption} {self.cells.note()}"
        return Drawn(figure=figure, title=title, caption=caption, alt=alt, numbers=numbers,
                     run_ids=self.cells.run_ids, grid=GRID)  # fmt: skip


def history(tracked: Tracked) -> Drawn:
    """The score of each trial in order, and the best so far.

    Raises:
        AnalysisError: no study of the score alone has a finished trial.
    """
    one = study(tracked, "miou")
    done, early = one.done, one.trials[one.trials["state"] == "pruned"]
    figure, ax = one.panel(2.0)
    ax.plot(done["trial"], done["score"], "o", color=style.BLUE, label="finished")
    ax.plot(early["trial"], early["value"], "x", color=style.GREY,
            label="stopped early (value then, if in view)")  # fmt: skip
    best = done["score"].cummax()
    ax.step(done["trial"], best, where="post", color=style.VERMILION, label="best so far")
    told = f"best {best.iloc[-1]:.1f}"
    if len(one.default):
        score = one.default["score"].iloc[0]
        ax.axhline(score, color="black", linewidth=0.7, linestyle=":", label="preset")
        told += f", preset {score:.1f}"
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(done) > 1:  # what was stopped early may have been anywhere
        low, high = done["score"].min(), done["score"].max()
        ax.set_ylim(bottom=low - 0.5 * (high - low or 1))
    ax.set_ylabel(f"{one.score} (%)")
    legend(figure)
    numbers = one.trials.assign(best_so_far=best).drop(columns=["latency_ms"])
    return one.drawn(
        figure, "Search: score by trial", numbers,
        f"{one.score} of the trials of the study {one.name} in the order in which they began; {told}. The "
        "best of many is too good on the images and the seed that chose it.",
        f"Scatter of {one.score} against trial with the running maximum; {told}.",
    )  # fmt: skip


def importances(tracked: Tracked) -> Drawn:
    """Share of the variance of the score that each setting explains.

    Raises:
        AnalysisError: no study has enough finished trials.
    """
    every = [one for objective in OBJECTIVES for one in studies(tracked, objective)]
    known = [one for one in every if len(one.importances)]
    if not known:
        missing = AnalysisError if every else NoRunError
        raise missing(f"no search has enough finished trials; make one: {command(GRID)}")
    one = max(known, key=lambda study: len(study.done))
    shares = one.importances.sort_values("importance")
    figure, ax = one.panel(0.4 + 0.2 * len(shares))
    labels = [text.rpartition(".")[2].replace("_", " ") for text in shares["setting"]]
    ax.barh(labels, 100 * shares["importance"], color=style.BLUE, height=0.65)
    ax.set_xlabel(f"importance (% of the variance of {one.score})")
    ax.grid(False, axis="y")
    told = f"most important: {labels[-1]}, {100 * shares['importance'].iloc[-1]:.0f}%"
    return one.drawn(
        figure, "Search: importance of the settings", shares,
        f"Functional ANOVA (Hutter et al., ICML 2014) of the {len(one.done)} finished trials of the study "
        f"{one.name}; {told}.",
        f"Bars of importance by setting; {told}.",
    )  # fmt: skip


def pareto(tracked: Tracked) -> Drawn:
    """Score against latency of each trial, and the front of those that none beats in both.

    Raises:
        AnalysisError: no study of both objectives has a finished trial.
    """
    one = study(tracked, "miou-latency")
    done = one.done
    figure, ax = one.panel(2.2)
    looks = style.looks([str(f) for f in done["model.fusion"].unique()])
    for fusion, here in done.groupby("model.fusion"):
        look = looks[str(fusion)]
        ax.plot(here["latency_ms"], here["score"], linestyle="", marker=look.marker,
                color=look.colour, label=look.label)  # fmt: skip
    best = done[pareto_front(done["score"], done["latency_ms"])].sort_values("latency_ms")
    ax.step(best["latency_ms"], best["score"], where="post", color="black", linewidth=0.8,
            label="Pareto front")  # fmt: skip
    if len(one.default):
        ax.plot(one.default["latency_ms"], one.default["score"], "o", markersize=10, label="preset",
                markerfacecolor="none", markeredgecolor=style.VERMILION)  # fmt: skip
    ax.set_xlabel("milliseconds per image")
    ax.set_ylabel(f"{one.score} (%)")
    legend(figure)
    told = f"{len(best)} of {len(done)} trials on the front"
    return one.drawn(
        figure, "Search: accuracy against latency",
        one.trials.assign(pareto=one.trials["trial"].isin(best["trial"])),
        f"Trials of the study {one.name}; {told}. Latency: {LATENCY}.",
        f"Scatter of {one.score} against milliseconds per image with the Pareto front; {told}.",
    )  # fmt: skip


def study(tracked: Tracked, objective: str) -> Study:
    """The study with most finished trials of an objective.

    Raises:
        NoRunError: there is none.
    """
    found = studies(tracked, objective)
    if not found:
        how = "" if objective == "miou" else f" --objective {objective}"
        raise NoRunError(f"no search has finished; make one: {command(GRID)}{how}")
    return max(found, key=lambda one: len(one.done))


def studies(tracked: Tracked, objective: str) -> list[Study]:
    """All studies of an objective with a finished trial, of runs that are to be drawn."""
    found: dict[str, Study] = {}
    files = [(run, path) for run in tracked.overviews(GRID) for path in tracked.files(run, FOLDER)]
    for run_id, path in files:
        name = path.removeprefix(f"{FOLDER}/").removesuffix(".csv")
        shares = f"{FOLDER}/{name}-importances.csv"
        # A study's name ends with its objective and a digest.
        of_objective = name.rsplit("-", 1)[0].endswith(f"-{objective}")
        if name in found or (run_id, shares) not in files or not of_objective:
            continue
        trials = tracked.csv(run_id, path)
        trials["preset"] = trials.get("preset", trials["trial"] == 0)  # older ones lack it
        runs = tracked.table[tracked.table["run_id"].isin(trials["run_id"])].assign(variant=GRID)
        # None of its runs may be among those that were asked for, by their number of steps.
        if (trials["state"] == "complete").any() and len(runs):
            found[name] = Study(name, trials, tracked.csv(run_id, shares), Cells(runs, {}))
    return list(found.values())
