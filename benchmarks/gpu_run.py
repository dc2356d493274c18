"""What the parts of `gpu.py` share: the device and the time that is left, and a run of one Config."""

import argparse
import itertools
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bare_machine  # noqa: F401 - before the package
import cv2
import numpy as np
import open_clip
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from semidavil.config import Config, preset
from semidavil.data.augment import finish
from semidavil.device import make_deterministic, to_device, use_bfloat16
from semidavil.flops import device_peak
from semidavil.models.text import Language
from semidavil.step import TrainingStep
from semidavil.train import open_experiment

IMAGES = 24  # of each data set
TINY = {  # for --small, in open_clip's own format
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
Changes = dict[str, Any]


class Bench:
    """What the parts share: the device, the files, and what is left of the time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.small = options, options.small
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.root = Path(options.root)
        if options.out:
            Path(options.out).mkdir(parents=True, exist_ok=True)
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
        setup = self.config.runtime
        make_deterministic(self.config.seed, setup.threads, device, setup.deterministic)
        self.experiment = open_experiment(self.config, device)
        self.method = self.experiment.method
        self.method.train()
        amp = use_bfloat16(self.config.training.amp, device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp)
        self.take_step = TrainingStep(
            self.experiment, self.config.training, self.autocast, device, setup.cuda_graphs
        )
        loader = DataLoader(
            self.experiment.batches, batch_size=None, sampler=range(batches), pin_memory=bench.cuda
        )
        self.raw = list(loader)
        self.done = 0

    def vary_captions(self) -> None:
        """Gives each batch captions of another length, as those of a captioner are."""
        for cut, batch in enumerate(self.raw):
            for part in batch.values():
                said = part["language"]
                left = said.mask.shape[1] - cut
                lengths = tuple(min(left, length) for length in said.lengths)
                part["language"] = Language(said.tokens[:, :left], said.mask[:, :left], lengths)

    def step(self) -> torch.Tensor:
        """The next step's loss, on the device; batches come round again."""
        raw = self.raw[self.done % len(self.raw)]
        losses = self.take_step(finish(to_device(raw, self.bench.device)), self.done)
        self.done += 1
        return losses["loss"].clone()

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
            "busy_ms": self.busy_ms(),
            "mfu": round(self.method.flops(batch) / (middle / 1000) / peak, 3) if peak else None,
        }

    def busy_ms(self) -> float | None:
        """The kernels of a step, one after the other: where it takes longer, they waited for the host."""
        return round(sum(self.profile(2)[1].values()), 1) if self.bench.cuda else None

    def waits(self) -> list[str]:
        """Where a step waits for the device, from the copy of its batch on; on a GPU alone."""
        if not self.bench.cuda:
            return []
        torch.cuda.set_sync_debug_mode("warn")
        try:
            heard = self._warnings_of_a_step("synchroniz")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sorted({f"{Path(one.filename).name}:{one.lineno}" for one in heard})

    def not_deterministic(self) -> list[str]:
        """Kernels that warn that they are not, where PyTorch may only warn."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            heard = self._warnings_of_a_step("determin")
        finally:
            torch.use_deterministic_algorithms(True, warn_only=not self.bench.cuda)
        # Where a GPU is not only asked to warn, PyTorch chooses another.
        heard = [one for one in heard if "Attention defaults" not in str(one.message)]
        return sorted({str(one.message).split(" does not")[0][:80] for one in heard})

    def _warnings_of_a_step(self, word: str) -> list[warnings.WarningMessage]:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            self.step()
            self.bench.synchronise()
        return [one for one in heard if word in str(one.message)]

    def profile(self, steps: int, trace: Path | None = None) -> tuple[float, dict[str, float]]:
        """Wall time of a step in ms under the profiler, and ms of each kernel in it (on a CPU, operator).

        Args:
            trace: None, or where one step is written for `chrome://tracing` or Perfetto.
        """
        activities = [ProfilerActivity.CUDA] if self.bench.cuda else [ProfilerActivity.CPU]
        with profile(activities=activities) as found:
            times = self.milliseconds(steps)
        time_of = "self_device_time_total" if self.bench.cuda else "self_cpu_time_total"
        kernels = {e.key: getattr(e, time_of) / 1000 / steps for e in found.key_averages()}
        if trace:
            both = {ProfilerActivity.CPU, *activities}
            with profile(activities=both, with_stack=True) as found:
                self.milliseconds(1)
            found.export_chrome_trace(str(trace))
        return statistics.median(times), kernels


def write_disparities(root: Path) -> None:
    """Cityscapes' 16-bit disparities of the images that are there, which S-Depth learns from."""
    rng = np.random.default_rng(1)
    for image in sorted((root / "cityscapes" / "leftImg8bit" / "train").rglob("*.png")):
        height, width = cv2.imread(str(image)).shape[:2]
        small = rng.integers(1000, 20_000, (4, 8)).astype(np.uint16)
        path = Path(str(image).replace("leftImg8bit", "disparity"))
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


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
