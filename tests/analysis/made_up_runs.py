"""Writes made-up runs of every grid, whose numbers the tests know, into a tracking store."""

import io
import itertools
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from PIL import Image

from analysis.runs import KEY, OVERVIEW
from semidavil.benchmarks import BENCHMARKS

BENCHMARKS_2 = ("gta5-cityscapes", "synthia-cityscapes")
TOY = {"data.toy": "true", "training.steps": "150", "training.ema": "0.97"}
# How frequent Cityscapes' classes are, in pixels of an image of 4000, about as in the real set.
PIXELS = [1300, 220, 820, 24, 32, 44, 8, 20, 570, 42, 145, 44, 5, 250, 10, 9, 8, 4, 15]

# Of the fixture `attention`: fusion, budget, seed, mIoU.
CELLS = [
    ("dlg", 0, 0, 20.0), ("dlg", 0, 1, 24.0), ("dlg", 100, 0, 31.0), ("dlg", 100, 1, 35.0),
    ("wpct", 0, 0, 18.0), ("wpct", 0, 1, 20.0), ("wpct", 100, 0, 33.0),
]  # fmt: skip


class Writer:
    """Writes runs as the sweeps do, in one batch each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        self.experiments: dict[str, str] = {}

    def run(
        self,
        grid: str,
        params: Mapping[str, Any],
        final: Mapping[str, float],
        *,
        history: Mapping[str, Sequence[tuple[int, float]]] | None = None,
        evaluation: Mapping[str, np.ndarray] | None = None,
        gallery: Mapping[str, np.ndarray] | None = None,
        tags: Mapping[str, str] | None = None,
        status: str = "FINISHED",
        key: str | None = None,
        name: str | None = None,
    ) -> str:
        if grid not in self.experiments:
            place = (self.folder / "mlruns" / grid).as_uri()
            self.experiments[grid] = self.client.create_experiment(grid, place)
        all_tags = {KEY: key or f"{grid}-{sorted(params.items())}", **(tags or {})}
        created = self.client.create_run(self.experiments[grid], tags=all_tags, run_name=name)
        run = created.info.run_id
        now = int(time.time() * 1000)
        metrics = [Metric(f"final/{name}", float(v), now, 0) for name, v in final.items()]
        for name, points in (history or {}).items():
            metrics += [Metric(name, float(v), now, step) for step, v in points]
        parameters = [Param(name, str(value)) for name, value in params.items()]
        self.client.log_batch(run, metrics, parameters, [RunTag("semidavil.device", "test")])
        for name, arrays in (("evaluation", evaluation), ("gallery", gallery)):
            if arrays is not None:
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch) / f"{name}.npz"
                    np.savez_compressed(path, **arrays)
                    self.client.log_artifact(run, str(path))
        self.client.set_terminated(run, status)
        return run


def settings(benchmark: str, budget: int, seed: int, **changes: Any) -> dict[str, Any]:
    base = {"data.benchmark": benchmark, "data.budget": budget, "seed": seed}
    return {**TOY, **base, **{name.replace("__", "."): value for name, value in changes.items()}}


def evaluation_of(benchmark: str, skill: float, seed: int, images: int = 12) -> dict[str, Any]:
    """Confusion matrices of a network that gets `skill` of the frequent classes right."""
    classes = BENCHMARKS[benchmark].classes
    rng = np.random.default_rng(seed)
    known = dict(zip(BENCHMARKS["gta5-cityscapes"].classes, PIXELS, strict=True))
    counts = np.array([known[name] for name in classes])
    right = np.clip(skill + 0.06 * np.log(counts / counts.max()), 0.02, 0.98)
    per_image = np.zeros((images, len(classes), len(classes)), dtype=np.int32)
    for image, c in itertools.product(range(images), range(len(classes))):
        there = rng.poisson(counts[c])
        hits = rng.binomial(there, right[c])
        wrong = rng.multinomial(there - hits, counts / counts.sum())
        per_image[image, c] = wrong
        per_image[image, c, c] += hits
    return {
        "names": np.array([f"image{i}" for i in range(images)]),
        "per_image": per_image,
        "confident": (per_image.sum(0) * 0.6).astype(np.int64),
    }


def gallery_of(skill: float, seed: int, images: int = 6) -> dict[str, Any]:
    """Predictions on the same images, all of road but for a little of everything, and errors."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "names": np.array([f"image{i}" for i in range(images)]),
        "captions": np.array([f"a road, number {i}" for i in range(images)]),
    }
    for i in range(images):
        truth = np.zeros((16, 32), np.uint8)
        truth[:8] = np.random.default_rng(i).integers(0, 16, (8, 32))
        truth[0, 0] = 255
        wrong = rng.random(truth.shape) > 0.4 + skill
        picture = io.BytesIO()
        Image.fromarray(np.full((16, 32, 3), 20 * i, np.uint8)).save(picture, "JPEG")
        arrays[f"image/{i}"] = np.frombuffer(picture.getvalue(), np.uint8)
        arrays[f"truth/{i}"] = truth
        arrays[f"labels/{i}"] = np.where(wrong, (truth + 1) % 16, truth % 16).astype(np.uint8)
    return arrays


def iou_metrics(benchmark: str, evaluation: Mapping[str, np.ndarray]) -> dict[str, float]:
    confusion = evaluation["per_image"].sum(0)
    hits = np.diag(confusion)
    per_class = 100 * hits / (confusion.sum(0) + confusion.sum(1) - hits)
    classes = BENCHMARKS[benchmark].classes
    return {"miou": float(per_class.mean())} | {
        f"iou/{name}": float(v) for name, v in zip(classes, per_class, strict=True)
    }


SKILL = {
    "dlg": 0.02, "vlga": 0.01, "wpct": 0.0, "cross_attention": 0.005,
    "dyce": 0.03, "ce": 0.0, "wce": -0.03, "dce": 0.002, "focal": 0.004, "dfl": 0.006,
    "semidavil": 0.06, "semivl": 0.04, "unimatch": 0.03, "unimatch_v2": 0.05, "sdepth": 0.02,
    "supervised": 0.0,
    "target_only": -0.06, "source_only": -0.1,
    "positions": 0.02, "class_names": 0.01, "none": 0.0, "shuffled:positions": -0.01, "oracle": 0.03,
}  # fmt: skip


def add_network(
    writer: Writer, grid: str, params: dict[str, Any], skill: float, *, full: bool = False
) -> None:
    """A run of a network of some skill; `full` with evaluation and histories."""
    benchmark, seed = params["data.benchmark"], int(params["seed"])
    noise = np.random.default_rng([seed, len(grid), params["data.budget"]]).normal(0, 0.004)
    level = 0.6 + 0.04 * np.log10(1 + params["data.budget"]) + skill + noise
    evaluation = evaluation_of(benchmark, level, seed)
    final = iou_metrics(benchmark, evaluation)
    rng = np.random.default_rng(seed)
    cost = 100 * (1.8 if params.get("training.method", "semidavil") != "supervised" else 1.0)
    final["seconds"] = cost * (1 + 4 * max(skill, 0)) + rng.normal(0, 3)
    history = None
    if full:
        steps = range(15, 151, 15)
        shape = [(step, 1 - np.exp(-step / 40)) for step in steps]
        history = {
            "val/miou": [(s, final["miou"] * f + rng.normal(0, 0.3)) for s, f in shape],
            "train/loss": [(s, 3.0 * (1 - f) + 0.5 + rng.normal(0, 0.05)) for s, f in shape],
            "val/pseudo/coverage": [(s, 80 * f) for s, f in shape],
            "val/pseudo/accuracy": [(s, 70 + 25 * f) for s, f in shape],
            "val/pseudo/coverage/road": [(s, 90 * f) for s, f in shape],
            "val/pseudo/accuracy/road": [(s, 80 + 15 * f) for s, f in shape],
            "val/pseudo/accuracy/train": [(150, 40.0 + seed)],
            "train/peak_memory_mb": [(150, 2000 + 4000 * abs(skill))],
        }
    gallery = gallery_of(skill, seed) if grid == "methods" else None
    kept = evaluation if full else None
    writer.run(grid, params, final, history=history, evaluation=kept, gallery=gallery)


def write_everything(folder: Path) -> None:
    """Runs of every grid with three seeds."""
    w = Writer(folder)
    seeds, budgets = (0, 1, 2), (0, 100, 500, 2975)
    for benchmark, budget, seed in itertools.product(BENCHMARKS_2, budgets, seeds):
        for fusion in ("dlg", "vlga", "wpct", "cross_attention"):
            cell = settings(benchmark, budget, seed, model__fusion=fusion)
            add_network(w, "attention", cell, SKILL[fusion])
        if budget in (100, 500):
            for loss in ("ce", "wce", "dce", "focal", "dfl", "dyce"):
                cell = settings(benchmark, budget, seed, loss__name=loss)
                add_network(w, "losses", cell, SKILL[loss], full=loss in ("ce", "dyce"))
            for name in ("semivl", "semidavil"):
                cell = settings(benchmark, budget, seed, training__method=name)
                add_network(w, "semivl", cell, SKILL[name])
        if budget <= 100:
            trained = [
                "semidavil", "semivl", "unimatch", "unimatch_v2", "sdepth", "supervised", "target_only",
            ]  # fmt: skip
            for name in trained if budget else ["source_only"]:
                cell = settings(benchmark, budget, seed, training__method=name)
                add_network(w, "methods", cell, SKILL[name], full=True)
    parts = {"model.vision_init": "random", "model.fusion": "none",
             "training.consistency_weight": "0.0", "loss.name": "ce"}  # fmt: skip
    worth = (0.08, 0.02, 0.03, 0.015)
    for on, seed in itertools.product(itertools.product((True, False), repeat=4), seeds):
        off = {
            name: value for (name, value), there in zip(parts.items(), on, strict=True) if not there
        }
        cell = {**settings(BENCHMARKS_2[0], 100, seed), **off}
        add_network(w, "components", cell, float(np.dot(on, worth)))
    for seed in seeds:
        cell = settings(BENCHMARKS_2[0], 100, seed, training__method="semidavil_released")
        add_network(w, "components", cell, 0.01)
    for name, seed in itertools.product(
        ("positions", "class_names", "none", "shuffled:positions", "oracle"), seeds
    ):
        cell = settings(BENCHMARKS_2[0], 100, seed, model__captions=name)
        add_network(w, "captions", cell, SKILL[name])
    varied = {"loss.hard_fraction": (0.1, 0.5, 1.0), "loss.omega": (0.0, 0.25, 0.75, 1.0),
              "training.confidence": (0.5, 0.7, 0.9), "training.ema": (0.9, 0.99, 0.999),
              "training.consistency_weight": (0.0, 0.5, 2.0),
              "training.consistency_over": ("confident",), "training.supervised": ("joint",)}  # fmt: skip
    for seed in seeds:
        default = {**settings(BENCHMARKS_2[0], 100, seed), "training.confidence": "0.8"}
        add_network(w, "sensitivity", default, 0.03)
        for name, values in varied.items():
            for value in values:
                worth = 0.02 if isinstance(value, str) else 0.02 - 0.01 * abs(value - 0.7)
                add_network(w, "sensitivity", {**default, name: value}, worth)
    add_controls(w, seeds)
    add_encoders(w, seeds)
    add_synapse(w, seeds)
    add_search(w)


def add_controls(writer: Writer, seeds: Iterable[int]) -> None:
    for seed, (name, parameters) in itertools.product(
        seeds, [("dlg", 3e6), ("vlga", 4e6), ("wpct", 2e6), ("blank", 1.5e6), ("none", 1e6)]
    ):
        cell = settings(BENCHMARKS_2[0], 100, seed, model__fusion=name)
        miou = {"dlg": 33.0, "vlga": 32.5, "wpct": 31.0, "blank": 30.0, "none": 29.0}[name]
        final = {"miou": miou + seed, "parameters": parameters, "latency_ms": 10 + seed}
        writer.run("attention_controls", cell, final)
    ways = {"paper": {}, "matched": {"training__consistency_scale": "matched"},
            "alone": {"training__consistency_weight": 0.0}}  # fmt: skip
    for seed, loss, way in itertools.product(seeds, ("dyce", "ce"), ways):
        cell = settings(BENCHMARKS_2[0], 100, seed, loss__name=loss, **ways[way])
        lead = {"paper": 3.0, "matched": 1.0 + 0.1 * seed, "alone": -1.0}[way]
        writer.run("loss_controls", cell, {"miou": 30.0 + seed + (lead if loss == "dyce" else 0)})


ENCODERS = {
    "toy": {},
    "toy (random)": {"model__vision_init": "random"},
    "test_vit (random)": {"model__encoder": "timm:test_vit", "model__encoder_weights": "none"},
}


def add_encoders(writer: Writer, seeds: Iterable[int]) -> None:
    """Each a point above the one before at a hundred thousand parameters more; DLG adds another."""
    for seed, (place, changes), fusion in itertools.product(
        seeds, enumerate(ENCODERS.values()), ("dlg", "none")
    ):
        bundled = {"model__vlm": "toy", "model__weights": "bundled", "model__fusion": fusion}
        cell = settings(BENCHMARKS_2[0], 100, seed, **bundled, **changes)
        final = {
            "miou": 30.0 + place + (fusion == "dlg") + seed,
            "parameters": 1e6 + 1e5 * place,
            "latency_ms": 20.0 - place,
        }
        writer.run("encoders", cell, final)


def add_synapse(writer: Writer, seeds: Iterable[int]) -> None:
    organs = [c for c in BENCHMARKS["synapse"].classes if c != "background"]
    for method, loss, seed in itertools.product(("uamt", "urpc"), ("ce", "dyce"), seeds):
        rng = np.random.default_rng(seed)
        dice = {
            o: 80 - 4 * i + (3 + i + 0.1 * seed if loss == "dyce" else 0) + rng.normal()
            for i, o in enumerate(organs)
        }
        asd = {o: 2 + 0.4 * i - (0.2 * i if loss == "dyce" else 0) for i, o in enumerate(organs)}
        final = {f"dice/{o}": v for o, v in dice.items()} | {f"asd/{o}": v for o, v in asd.items()}
        final |= {f"asd_voxels/{o}": 0.6 * v for o, v in asd.items()} | {"asd_voxels": 2.4}
        final |= {"dice": float(np.mean(list(dice.values()))), "asd": 4.0, "seconds": 60.0}
        cell = settings("synapse", 4, seed, training__method=method, loss__name=loss)
        writer.run("synapse", cell, final)


def add_search(writer: Writer, benchmark: str = "gta5-cityscapes", metric: str = "miou") -> str:
    """What two searches leave behind; the id of the one run that is there."""
    cell = settings(benchmark, 100, 0, training__method="semidavil")
    run_id = writer.run("search", cell, {metric: 30.0})
    header = "trial,state,score,latency_ms,step,value,loss.omega,model.fusion,run_id,preset"
    one, both = "gta5-cityscapes-100-s0-miou-ab", "gta5-cityscapes-100-s0-miou-latency-cd"
    files = {
        one: [
            header, "0,fail,,,5,12,0.5,dlg,v,True", "1,pruned,,,3,9,0.1,dlg,x,False",
            "2,complete,28,,5,12,0.6,dlg,y,False", "3,complete,33,,5,12,0.3,dlg,z,False",
            f"4,complete,30,,5,12,0.5,dlg,{run_id},True",
        ],
        f"{one}-importances": ["setting,importance", "loss.omega,0.75", "training.lr,0.25"],
        both: [
            header, f"0,complete,30,5,,,0.5,dlg,{run_id},True", "1,complete,40,9,,,0.5,dlg,x,False",
            "2,complete,29,6,,,0.5,none,y,False", "3,complete,40,8,,,0.5,none,z,False",
        ],
        f"{both}-importances": ["setting,importance"],
    }  # fmt: skip
    experiment = writer.experiments["search"]
    overview = writer.client.create_run(experiment, tags={OVERVIEW: "search"}).info.run_id
    for name, lines in files.items():
        writer.client.log_text(overview, "\n".join([*lines, ""]), f"studies/{name}.csv")
    return run_id
