"""What grids show on generated scenes: runs what is missing, then prints the tables of README.md.

    python benchmarks/accuracy.py --grids attention attention_controls losses loss_controls
    python benchmarks/accuracy.py --grids baselines --preset toy-long --budgets 0 100 2975 --seeds 0 1 2

A table has a row for each variant and a column for each budget: mean and sample standard deviation over
seeds of the benchmark's own score, and how many seeds. Below it, differences from the grid's first variant,
paired by seed. Scores come from the tracking store, as figures take them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analysis.runs import load_runs  # noqa: E402
from semidavil.benchmarks import BENCHMARKS  # noqa: E402
from semidavil.config import PRESETS, preset  # noqa: E402
from sweeps.plan.grids import GRIDS  # noqa: E402

USUAL = 100  # labels, at which variants are compared if they can be
# What `baselines` is asked, beyond differences at one budget: (variant, budget) minus (variant, budget).
QUESTIONS = [
    (("semidavil", 100), ("source_only", 0)),
    (("semidavil", 100), ("target_only", 100)),
    (("semidavil", 100), ("supervised", 100)),
    (("target_only", 2975), ("source_only", 0)),
    (("semidavil", 100), ("semidavil", 0)),
    (("semidavil", 2975), ("semidavil", 100)),
]


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("--grids", nargs="+", default=["attention"], choices=GRIDS)
    command.add_argument("--preset", default="toy", choices=PRESETS)
    command.add_argument("--benchmark", nargs="+", default=[])
    command.add_argument("--budgets", nargs="+", type=int, default=[])
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--no-run", action="store_true", help="only print what has been run")
    options = command.parse_args()
    for grid in () if options.no_run else options.grids:
        run = [sys.executable, "sweeps/run.py", "--grid", grid, "--preset", options.preset]
        for name in ("benchmark", "budgets", "seeds"):
            if values := getattr(options, name):
                run += [f"--{name}", *map(str, values)]
        subprocess.run(run, cwd=ROOT, check=True)

    scores = load_runs().table.drop_duplicates("key").set_index("key")
    for grid in options.grids:
        cells = GRIDS[grid].cells(
            preset(options.preset), options.benchmark, options.budgets, options.seeds
        )
        found = pd.DataFrame(
            {
                "benchmark": cell.data.benchmark,
                "variant": GRIDS[grid].variant(cell),
                "budget": cell.data.budget,
                "seed": cell.seed,
                "score": scores.at[cell.key(), BENCHMARKS[cell.data.benchmark].metric],
            }
            for cell in cells
            if cell.key() in scores.index
        )
        print(f"\n{grid}, {options.preset}: {len(found)} of {len(cells)} runs")
        if not found.empty:
            for benchmark, runs in found.groupby("benchmark", sort=False):
                print_table(str(benchmark), runs)


def print_table(benchmark: str, runs: pd.DataFrame) -> None:
    """Scores by variant and budget, and the differences that can be paired."""
    shown = runs.groupby(["variant", "budget"], sort=False)["score"].agg(_spread)
    print(f"\n{benchmark}", shown.unstack().fillna("-").to_string(), sep="\n")
    pairs = runs.set_index(["variant", "budget", "seed"])["score"].sort_index()
    first = runs["variant"].iloc[0]
    variants = runs.groupby("budget")["variant"].nunique()
    common = variants.index[variants == variants.max()]  # budgets of as many variants as possible
    at = USUAL if USUAL in common else common[0]
    questions = [((v, at), (first, at)) for v in runs["variant"].unique() if v != first]
    if {"source_only", "target_only"} <= set(runs["variant"]):
        questions = [q for q in QUESTIONS if all(side in pairs.index for side in q)]
    for ours, theirs in questions:
        if ours in pairs.index and theirs in pairs.index:
            differences = (pairs.loc[ours] - pairs.loc[theirs]).dropna()
            if len(differences):
                names = " - ".join(f"{variant}@{budget}" for variant, budget in (ours, theirs))
                print(f"    {names:44} {_spread(differences, sign=True)}")


def _spread(values: pd.Series, sign: bool = False) -> str:
    mean = f"{values.mean():+.1f}" if sign else f"{values.mean():.1f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.1f} (n={len(values)})"


if __name__ == "__main__":
    main()
