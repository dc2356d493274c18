"""What the `paper` preset does on this machine's GPU, in at most eight minutes.

    python benchmarks/gpu.py --out FOLDER               # FOLDER/gpu.jsonl and gpu.md; both are printed, too
    python benchmarks/gpu.py --only steps compile --seconds 240
    python benchmarks/gpu.py --small                    # tiny networks and images: to try it on a CPU

Needs no data set and no weights: it writes full-size files in the formats of Cityscapes and GTA5 and trains a
random ViT-B/16. Of packages it needs torch, torchvision, open_clip, timm, OpenCV and pydantic, and none of
those for tracking, sweeps, figures and volumes. Parts come in order of value; each stands alone, prints a
JSON line per measurement, and is left out where too little time is left. Tables at the end name the card.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bare_machine  # noqa: F401 - before the package
import cv2
import numpy as np
import open_clip
import torch
from full_size import write_full_size
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from semidavil.checkpoint import StopTraining
from semidavil.config import Config, preset
from semidavil.data.augment import finish
from semidavil.device import make_deterministic, to_device, use_bfloat16
from semidavil.flops import device_peak
from semidavil.step import TrainingStep
from semidavil.train import Report, open_experiment, prepare, train

IMAGES, VALIDATION = 24, 4  # files of each data set
CARD_24 = 24e9  # bytes of a card on which evaluation must fit
TINY = {  # for --small, in open_clip's own format
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ATTENTIONS = ("dlg", "vlga", "wpct", "cross_attention", "none", "blank")
RIVALS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "unimatch": {"model.fusion": "none", "loss.name": "ce"},
    "semivl": {"model.fusion": "vlga", "loss.name": "ce"},
    "sdepth": {"model.fusion": "none", "loss.name": "ce"},
}
Changes = dict[str, Any]


class Bench:
    """What the parts share: the device, the files, and what is left of the time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.small = options, options.small
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.root = Path(options.root or tempfile.mkdtemp())
        self.started = time.perf_counter()
        self.rows: list[dict[str, Any]] = []
        self.card = torch.cuda.get_device_name(self.device) if self.cuda else "CPU"
        if self.small:
            path = self.root / "tiny.json"
            path.write_text(json.dumps(TINY))
            open_clip.add_model_config(path)

    def left(self) -> float:
        return float(self.options.seconds - (time.perf_counter() - self.started))

    def say(self, **row: Any) -> None:
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self.options.out:
            with (Path(self.options.out) / "gpu.jsonl").open("a") as file:
                file.write(line + "\n")

    def config(self, changes: Changes) -> Config:
        known: Changes = {
            "runtime.data_root": str(self.root),
            "runtime.cache_dir": str(self.root / "cache"),
            "runtime.device": self.options.device,
            "runtime.num_workers": 0,
            "runtime.threads": 1 if self.small else 8,
            "runtime.eval_every": 0,
            "runtime.checkpoint_every": 0,
            "model.weights": "none",
            "model.captions": "class_names",
            "data.budget": IMAGES // 2,
        }
        if self.small:
            known |= {
                "model.vlm": "tiny", "data.crop": [64, 64], "data.source_size": [76, 128],
                "data.target_size": [64, 128], "model.fusion_dim": 32, "model.decoder_dim": 32,
                "training.batch_size": 2,
            }  # fmt: skip
        return preset("paper", {**known, **changes})

    def steps(self, number: int) -> int:
        return max(2, number // 10) if self.small else number

    def synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None


class Run:
    """An experiment of a Config, and batches in pinned memory."""

    def __init__(self, bench: Bench, changes: Changes, batches: int = 4) -> None:
        self.bench, self.config = bench, bench.config(changes)
        device = bench.device
        if bench.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        make_deterministic(self.config.seed, self.config.runtime.threads, device)
        self.experiment = open_experiment(self.config, device)
        self.method = self.experiment.method
        self.method.train()
        amp = use_bfloat16(self.config.training.amp, device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp)
        self.take_step = TrainingStep(self.experiment, self.config.training, autocast, device)
        loader = DataLoader(
            self.experiment.batches, batch_size=None, sampler=range(batches), pin_memory=bench.cuda
        )
        self.raw = list(loader)
        self.done = 0

    def step(self) -> torch.Tensor:
        """The next step's loss, on the device; batches come round again."""
        raw = self.raw[self.done % len(self.raw)]
        losses = self.take_step(finish(to_device(raw, self.bench.device)), self.done)
        self.done += 1
        return losses["loss"].detach()

    def milliseconds(self, steps: int) -> list[float]:
        """Of each of so many steps, one queued behind the other."""
        self.bench.synchronise()
        marks = []
        for _ in range(steps + 1):
            if marks:
                self.step()
            marks.append(self._mark())
        self.bench.synchronise()
        return [self._between(a, b) for a, b in itertools.pairwise(marks)]

    def _mark(self) -> Any:
        if not self.bench.cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second) if self.bench.cuda else 1000 * (second - first))

    def speed(self, steps: int) -> dict[str, Any]:
        """Time of a step, memory and utilisation, after a few steps to warm up."""
        self.milliseconds(3)
        if self.bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        times = self.milliseconds(steps)
        batch = finish(to_device(self.raw[0], self.bench.device))
        images = sum(len(part["image"]) for part in batch.values())
        middle, peak = statistics.median(times), device_peak(self.bench.device)
        return {
            "step_ms": round(middle, 1),
            "fastest_ms": round(min(times), 1),
            "slowest_ms": round(max(times), 1),
            "peak_gib": self.bench.peak_gib(),
            "images_per_second": round(1000 * images / middle, 1),
            "mfu": round(self.method.flops(batch) / (middle / 1000) / peak, 3) if peak else None,
        }

    def waits(self) -> list[str]:
        """Where a step waits for the device, from the copy of its batch on; on a GPU alone."""
        if not self.bench.cuda:
            return []
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.step()
        except RuntimeError as error:
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if "semidavil" in f.filename
            ]
            return [f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {str(error)[:60]}"]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return []

    def not_deterministic(self) -> list[str]:
        """Kernels that warn that they are not, where PyTorch may only warn."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                self.step()
                self.bench.synchronise()
        finally:
            torch.use_deterministic_algorithms(True, warn_only=not self.bench.cuda)
        said = (str(one.message) for one in heard)
        return sorted({text.split(" does not")[0][:80] for text in said if "determin" in text})


def write_disparities(root: Path) -> None:
    """Cityscapes' 16-bit disparities of the images that are there, which S-Depth learns from."""
    rng = np.random.default_rng(1)
    for image in sorted((root / "cityscapes" / "leftImg8bit" / "train").rglob("*.png")):
        height, width = cv2.imread(str(image)).shape[:2]
        small = rng.integers(1000, 20_000, (4, 8)).astype(np.uint16)
        path = Path(str(image).replace("leftImg8bit", "disparity"))
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def steps(bench: Bench) -> None:
    """Every attention and method: time, memory, utilisation, waits, kernels that are not deterministic."""
    cases: dict[str, Changes] = {
        f"semidavil, {name}": {"model.fusion": name} for name in ATTENTIONS
    }
    cases |= {name: {"training.method": name, **more} for name, more in RIVALS.items()}
    for name, changes in cases.items():
        if bench.left() < 30:
            bench.say(part="steps", name=name, left_out=True)
            continue
        with bench_errors(bench, part="steps", name=name):
            run = Run(bench, changes)
            warned = run.not_deterministic()
            found = run.speed(bench.steps(20))
            found |= {"waits": run.waits(), "not_deterministic": warned}
            bench.say(part="steps", name=name, **found)
            del run


def data_wait(bench: Bench) -> None:
    """`train` itself with several numbers of workers: how long the loop waits for a batch."""
    for workers in (12, 4, 8, 16) if not bench.small else (0, 1):
        if bench.left() < 30:
            bench.say(part="data_wait", workers=workers, left_out=True)
            continue
        heard: list[dict[str, float]] = []
        steps = 6 if bench.small else 90

        def listen(report: Report, heard: list = heard, steps: int = steps) -> None:
            if "train/loss" in report.metrics and report.step > steps // 3:
                heard.append(report.metrics)

        config = bench.config({"runtime.num_workers": workers, "training.steps": steps})
        train(config, listen)
        speed = statistics.median(one["train/images_per_second"] for one in heard)
        wait = statistics.fmean(one["train/data_wait_ms"] for one in heard)
        step_ms = 1000 * 3 * config.training.batch_size / speed
        bench.say(
            part="data_wait", workers=workers, data_wait_ms=round(wait, 2),
            share=round(wait / step_ms, 4), images_per_second=round(speed, 1),
            mfu=statistics.median(one["train/mfu"] for one in heard) if "train/mfu" in heard[0] else None,
        )  # fmt: skip


def resume(bench: Bench) -> None:
    """The same twelve steps twice, and stopped after six: equal, or by how much not."""

    def losses(folder: Path, stop_at: int = 0) -> dict[int, float]:
        heard: dict[int, float] = {}

        def listen(report: Report) -> None:
            if "train/loss" in report.metrics:
                heard[report.step] = report.metrics["train/loss"]
            if stop_at and report.step == stop_at:
                raise StopTraining

        with suppress(StopTraining):
            train(bench.config({"training.steps": 12}), listen, folder)
        return heard

    with tempfile.TemporaryDirectory() as scratch:
        once, twice = losses(Path(scratch) / "once"), losses(Path(scratch) / "twice")
        parts = losses(Path(scratch) / "parts", stop_at=6) | losses(Path(scratch) / "parts")
        weights = [Path(scratch) / n / "segmenter.safetensors" for n in ("once", "twice", "parts")]
        content = [load_file(path) for path in weights]
    equal = [
        all(torch.equal(value, other[name]) for name, value in content[0].items())
        for other in content[1:]
    ]
    largest = [max(abs(loss - other[n]) for n, loss in once.items()) for other in (twice, parts)]
    bench.say(
        part="resume", twice_equal=equal[0], twice_largest=largest[0],
        resumed_equal=equal[1], resumed_largest=largest[1],
    )  # fmt: skip


def precision(bench: Bench) -> None:
    """Fifty steps in bfloat16 and in float32: the curves of the loss."""
    curves, times = {}, {}
    for name, amp in (("bfloat16", True), ("float32", False)):
        run = Run(bench, {"training.amp": amp}, batches=8)
        start = time.perf_counter()
        found = [run.step() for _ in range(bench.steps(50))]
        curves[name] = torch.stack(found).tolist()
        times[name] = 1000 * (time.perf_counter() - start) / len(found)
        del run
    apart = [
        abs(a - b) / abs(b) for a, b in zip(curves["bfloat16"], curves["float32"], strict=True)
    ]
    bench.say(
        part="precision", largest_relative=round(max(apart), 4), last_relative=round(apart[-1], 4),
        **{f"{name}_ms": round(value, 1) for name, value in times.items()},
        **{f"{name}_losses": [round(x, 3) for x in c[::7]] for name, c in curves.items()},
    )  # fmt: skip


def evaluation(bench: Bench) -> None:
    """Images of 1024x2048 within the memory of a 24 GB card."""
    size = (
        {} if bench.small else {"data.target_size": [1024, 2048], "data.source_size": [1052, 1914]}
    )
    prepare(bench.config(size), False)
    run = Run(bench, size, batches=1)
    network = dict(list(run.method.networks().items())[:1])
    if bench.cuda:
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_24 / total))
    try:
        with run.take_step.autocast:
            run.experiment.evaluate(network)
            bench.synchronise()
            start = time.perf_counter()
            run.experiment.evaluate(network)
            bench.synchronise()
    finally:
        if bench.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
    seconds = (time.perf_counter() - start) / VALIDATION
    bench.say(part="evaluation", ms_per_image=round(1000 * seconds, 1), peak_gib=bench.peak_gib())


def two_trials(bench: Bench) -> None:
    """Two processes that train on one GPU at the same time, against one alone."""
    command = [sys.executable, __file__, "--child", "--root", str(bench.root)]
    command += ["--device", bench.options.device, *(["--small"] if bench.small else [])]
    for count in (1, 2):
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for child in children:
            while child.stdout and child.stdout.readline().strip() not in ("ready", ""):
                pass
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        told = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
        bench.say(
            part="two_trials", trials=count, peak_gib=[one["peak_gib"] for one in told],
            images_per_second=round(sum(one["images_per_second"] for one in told), 1),
        )  # fmt: skip


def child(bench: Bench) -> None:
    """One of `two_trials`: says that it is ready, waits, trains for a while."""
    run = Run(bench, {})
    run.milliseconds(3)
    print("ready", flush=True)
    sys.stdin.readline()
    number, seconds = 0, 0.3 if bench.small else 10.0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        run.step()
        bench.synchronise()
        number += 1
    images = 3 * run.config.training.batch_size * number / (time.perf_counter() - start)
    print(json.dumps({"images_per_second": images, "peak_gib": bench.peak_gib()}), flush=True)


def price_of_determinism(bench: Bench) -> None:
    """The same step where kernels may sum in any order, and cuDNN may choose the fastest."""
    run = Run(bench, {})
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    bench.say(part="price_of_determinism", **run.speed(bench.steps(20)))


def compiled(bench: Bench) -> None:
    """`runtime.compile`: the first step, and the others."""
    run = Run(bench, {"runtime.compile": True})
    start = time.perf_counter()
    run.step()
    bench.synchronise()
    seconds = time.perf_counter() - start
    bench.say(part="compiled", first_step_s=round(seconds, 1), **run.speed(bench.steps(20)))


# In order of value, with the seconds that a part takes on an H100 at most.
PARTS: dict[str, tuple[int, Callable[[Bench], None]]] = {
    "steps": (150, steps),
    "data_wait": (60, data_wait),
    "resume": (50, resume),
    "precision": (40, precision),
    "evaluation": (30, evaluation),
    "two_trials": (60, two_trials),
    "price_of_determinism": (20, price_of_determinism),
    "compiled": (70, compiled),
}


@contextmanager
def bench_errors(bench: Bench, **about: str) -> Iterator[None]:
    """Says what fails, and lets the next one run; each finds the device's settings as they were."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        bench.say(**about, error=f"{type(error).__name__}: {error}"[:300])
    finally:
        torch.backends.cudnn.benchmark = False


def markdown(bench: Bench) -> str:
    """The rows as tables, of which the first line names the card."""
    lines = [f"{bench.card}, PyTorch {torch.__version__}, {os.cpu_count()} CPU cores", ""]
    for part, group in itertools.groupby(bench.rows, lambda row: row["part"]):
        rows = [{n: v for n, v in row.items() if n != "part"} for row in group]
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"**{part}**", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for row in rows:
            cells = (row.get(name, "") for name in names)
            lines.append(f"| {' | '.join('' if c is None else str(c) for c in cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which no part begins")
    parser.add_argument("--small", action="store_true", help="tiny networks and images")
    parser.add_argument("--out", default="", help="folder for gpu.jsonl and gpu.md")
    parser.add_argument("--root", default="", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    bench = Bench(parser.parse_args())
    if bench.options.child:
        child(bench)
        return 0
    with bench_errors(bench, part="files"):
        write_full_size(bench.root, IMAGES, VALIDATION, IMAGES, scale=8 if bench.small else 1)
        write_disparities(bench.root)
        prepare(bench.config({}), False)
        bench.say(
            part="files", seconds=round(bench.options.seconds - bench.left(), 1), card=bench.card
        )
    for name in bench.options.only:
        needs, part = PARTS[name]
        if bench.left() < needs and not bench.small:
            bench.say(part=name, left_out=True)
            continue
        with bench_errors(bench, part=name):
            part(bench)
    table = markdown(bench)
    print(table)
    if bench.options.out:
        (Path(bench.options.out) / "gpu.md").write_text(table)
    return 1 if any("error" in row for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
