"""What Optuna's searches found: scores in order, what mattered, the trade-off with latency."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.cells import Cells
from analysis.drawn import Drawn
from analysis.panels import legend, panels
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import pareto_front
from semidavil.benchmarks import BENCHMARKS
from sweeps.plan.grids import OBJECTIVES, SEARCH

GRID, FOLDER = SEARCH, "studies"


def history(tracked: Tracked) -> Drawn:
    """The score of each trial in order, and the best so far.

    Raises:
        AnalysisError: no study of the score alone has a finished trial.
    """
    name, trials, _ = study(tracked, "miou")
    done = trials[trials["state"] == "complete"]
    early = trials[trials["state"] == "pruned"]
    figure, ax = _panel(2.0)
    ax.plot(done["trial"], done["score"], "o", color=style.BLUE, label="finished")
    ax.plot(
        early["trial"],
        early["value"],
        "x",
        color=style.GREY,
        label="stopped early (value then, if in view)",
    )
    best = done["score"].cummax()
    ax.step(done["trial"], best, where="post", color=style.VERMILION, label="best so far")
    default, score = done[done["preset"]], _score(tracked, trials)
    if len(default):
        ax.axhline(default["score"].iloc[0], color="black", linewidth=0.7, linestyle=":",
                   label="preset")  # fmt: skip
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(done) > 1:  # what was stopped early may have been anywhere
        low, high = done["score"].min(), done["score"].max()
        ax.set_ylim(bottom=low - 0.5 * (high - low or 1))
    ax.set_ylabel(f"{score} (%)")
    ax.set_title(_heading(tracked, trials), loc="left")
    legend(figure)
    told = f"best {best.iloc[-1]:.1f}" + (
        f", preset {default['score'].iloc[0]:.1f}" if len(default) else ""
    )
    numbers = trials.assign(best_so_far=best).drop(columns=["latency_ms"])
    return _drawn(
        figure, "Search: score by trial", tracked, trials, numbers,
        f"{score} of the trials of the study {name} in the order in which they began; {told}. The best of "
        "many is too good on the images and the seed that chose it.",
        f"Scatter of {score} against trial with the running maximum; {told}.",
    )  # fmt: skip


def importances(tracked: Tracked) -> Drawn:
    """Share of the variance of the score that each setting explains.

    Raises:
        AnalysisError: no study has enough finished trials.
    """
    name, trials, shares = max(
        (one for objective in OBJECTIVES for one in studies(tracked, objective)),
        key=lambda one: (len(one[2]) > 0, (one[1]["state"] == "complete").sum()),
        default=("", pd.DataFrame(), pd.DataFrame()),
    )
    if shares.empty:
        raise AnalysisError(f"no search has enough finished trials; make one: {command(GRID)}")
    shares = shares.sort_values("importance")
    figure, ax = _panel(0.4 + 0.2 * len(shares))
    labels = [text.rpartition(".")[2].replace("_", " ") for text in shares["setting"]]
    ax.barh(labels, 100 * shares["importance"], color=style.BLUE, height=0.65)
    ax.set_xlabel(f"importance (% of the variance of {_score(tracked, trials)})")
    ax.grid(False, axis="y")
    ax.set_title(_heading(tracked, trials), loc="left")
    first = shares.iloc[-1]
    told = f"most important: {labels[-1]}, {100 * first['importance']:.0f}%"
    finished = int((trials["state"] == "complete").sum())
    return _drawn(
        figure, "Search: importance of the settings", tracked, trials, shares,
        f"Functional ANOVA (Hutter et al., ICML 2014) of the {finished} finished trials of the study "
        f"{name}; {told}.",
        f"Bars of importance by setting; {told}.",
    )  # fmt: skip


def pareto(tracked: Tracked) -> Drawn:
    """Score against latency of each trial, and the front of those that none beats in both.

    Raises:
        AnalysisError: no study of both objectives has a finished trial.
    """
    name, trials, _ = study(tracked, "miou-latency")
    done = trials[trials["state"] == "complete"]
    on_front = pareto_front(done["score"], done["latency_ms"])
    figure, ax = _panel(2.2)
    looks = style.looks([str(f) for f in done["model.fusion"].unique()])
    for fusion, here in done.groupby("model.fusion"):
        look = looks[str(fusion)]
        ax.plot(here["latency_ms"], here["score"], linestyle="", marker=look.marker,
                color=look.colour, label=look.label)  # fmt: skip
    best = done[on_front].sort_values("latency_ms")
    ax.step(best["latency_ms"], best["score"], where="post", color="black", linewidth=0.8,
            label="Pareto front")  # fmt: skip
    default, score = done[done["preset"]], _score(tracked, trials)
    if len(default):
        ax.plot(default["latency_ms"], default["score"], "o", markersize=10, linestyle="",
                markerfacecolor="none", markeredgecolor=style.VERMILION, label="preset")  # fmt: skip
    ax.set_xlabel("milliseconds per image")
    ax.set_ylabel(f"{score} (%)")
    ax.set_title(_heading(tracked, trials), loc="left")
    legend(figure)
    told = f"{len(best)} of {len(done)} trials on the front"
    return _drawn(
        figure, "Search: accuracy against latency", tracked, trials,
        trials.assign(pareto=trials["trial"].isin(best["trial"])),
        f"Trials of the study {name}; {told}. Latency: median of one image on the machine that "
        "trained, with whatever else it did then.",
        f"Scatter of {score} against milliseconds per image with the Pareto front; {told}.",
    )  # fmt: skip


def study(tracked: Tracked, objective: str) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """Name, trials and importances of the study with most finished trials of an objective.

    Raises:
        AnalysisError: there is none.
    """
    found = studies(tracked, objective)
    if not found:
        how = "" if objective == "miou" else f" --objective {objective}"
        raise AnalysisError(f"no search has finished; make one: {command(GRID)}{how}")
    return max(found, key=lambda one: (one[1]["state"] == "complete").sum())


def studies(tracked: Tracked, objective: str) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """All studies of an objective with a finished trial, of runs that are to be drawn."""
    found: dict[str, tuple[str, pd.DataFrame, pd.DataFrame]] = {}
    files = [(run, path) for run in tracked.overviews(GRID) for path in tracked.files(run, FOLDER)]
    for run_id, path in files:
        name = path.removeprefix(f"{FOLDER}/").removesuffix(".csv")
        shares = f"{FOLDER}/{name}-importances.csv"
        # A study's name ends with its objective and a digest.
        if (
            name not in found
            and (run_id, shares) in files
            and name.rsplit("-", 1)[0].endswith(f"-{objective}")
        ):
            trials = tracked.csv(run_id, path)
            trials["preset"] = trials.get("preset", trials["trial"] == 0)  # older ones lack it
            # None of its runs may be among those that were asked for, by their number of steps.
            if (trials["state"] == "complete").any() and len(_runs(tracked, trials).runs):
                found[name] = name, trials, tracked.csv(run_id, shares)
    return list(found.values())


def _runs(tracked: Tracked, trials: pd.DataFrame) -> Cells:
    """The finished runs among the trials."""
    mine = tracked.table[tracked.table["run_id"].isin(trials["run_id"])]
    return Cells(mine.assign(variant=GRID), {})


def _heading(tracked: Tracked, trials: pd.DataFrame) -> str:
    chosen = _runs(tracked, trials)
    places = chosen.runs[["benchmark", "budget"]].drop_duplicates().itertuples(index=False)
    return "; ".join(f"{chosen.heading(str(b))}, {n:,} labels" for b, n in places)


def _score(tracked: Tracked, trials: pd.DataFrame) -> str:
    """What the study's benchmark is scored by; a study has one."""
    return BENCHMARKS[str(_runs(tracked, trials).runs["benchmark"].iloc[0])].score


def _panel(height: float) -> tuple[Figure, Axes]:
    frame = panels(["search"], 1, height)
    return frame.figure, frame.axes[0][0]


def _drawn(
    figure: Figure, title: str, tracked: Tracked, trials: pd.DataFrame, numbers: pd.DataFrame,
    caption: str, alt: str,
) -> Drawn:  # fmt: skip
    chosen = _runs(tracked, trials)
    return Drawn(
        figure=figure,
        title=title,
        caption=f"{caption} {chosen.note()}",
        alt=alt,
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
    )
