"""How well toy runs do: what labels, source, unlabelled images and attentions add.

    python benchmarks/bench_accuracy.py                       # long enough that methods differ
    python benchmarks/bench_accuracy.py --preset toy --grids baselines attention

Runs what is missing on generated scenes, then prints mIoU by variant and budget, mean and sample
standard deviation over seeds, and the differences that matter with theirs, paired by seed. On two CPU
cores the first command runs 24 cells of two to six minutes each, two at a time.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    command.add_argument("--preset", default="toy-long", choices=("toy", "toy-long"))
    command.add_argument("--grids", nargs="+", default=["baselines"])
    command.add_argument("--budgets", nargs="+", help="default: 0 100 2975; all of them for toy")
    command.add_argument("--no-run", action="store_true", help="only print what has been run")
    options = command.parse_args()
    seeds = [str(seed) for seed in options.seeds]
    shortened = ["0", "100", "2975"] if options.preset == "toy-long" else []
    asked = options.budgets or shortened
    for grid in () if options.no_run else options.grids:
        run = [sys.executable, "sweeps/run.py", "--grid", grid, "--preset", options.preset]
        run += ["--seeds", *seeds, *(["--budgets", *asked] if asked else [])]
        subprocess.run(run, cwd=ROOT, check=True)

    from analysis.runs import load_runs
    from semidavil.config import preset

    runs = load_runs().table
    runs = runs[runs["seed"].isin(options.seeds) & (runs["benchmark"] == "gta5-cityscapes")]
    keys = [
        preset(
            options.preset,
            {"data.budget": r.budget, "model.fusion": r.fusion, "training.method": r.method,
             "seed": r.seed},
        ).key()
        for r in runs.itertuples()
    ]  # fmt: skip
    runs = runs[runs["key"] == keys]
    dlg = runs[runs["fusion"] == "dlg"]
    print_table("method", dlg, "method")
    print_table("attention (semidavil)", runs[runs["method"] == "semidavil"], "fusion")

    few = dlg[dlg["budget"] == 100].set_index(["method", "seed"])["miou"]
    alone = dlg[dlg["method"] == "source_only"].set_index("seed")["miou"]
    everything = dlg[(dlg["method"] == "target_only") & (dlg["budget"] == 2975)]
    ours = few["semidavil"]
    print("differences, paired by seed")
    difference("semidavil@100 - source_only", ours - alone)
    difference("semidavil@100 - target_only@100", ours - few["target_only"])
    difference("semidavil@100 - supervised@100", ours - few["supervised"])
    difference("target_only@2975 - source_only", everything.set_index("seed")["miou"] - alone)
    budgets = dlg[dlg["method"] == "semidavil"].pivot(index="seed", columns="budget", values="miou")
    budgets = budgets.reindex(columns=[0, 100, 2975])
    for low, high in ((0, 100), (100, 2975)):
        difference(f"semidavil@{high} - semidavil@{low}", budgets[high] - budgets[low])


def print_table(title: str, runs: pd.DataFrame, column: str) -> None:
    groups = runs.groupby([column, "budget"])["miou"]
    text = groups.agg(lambda v: f"{v.mean():.1f} ± {v.std():.1f} (n={len(v)})")
    print(title, text.unstack().fillna("-").to_string(), sep="\n", end="\n\n")


def difference(name: str, values: pd.Series) -> None:
    values = values.dropna()
    if values.empty:
        print(f"{name:36} not run")
        return
    print(f"{name:36} {values.mean():+6.2f} ± {values.std():.2f} (n={len(values)})")


if __name__ == "__main__":
    main()
