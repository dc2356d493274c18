"""What the `paper` preset does on this machine's GPU, in at most eight minutes.

    python benchmarks/gpu.py --out FOLDER               # FOLDER/gpu.jsonl and gpu.md; both are printed, too
    python benchmarks/gpu.py --only steps ways --seconds 240
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
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bare_machine  # noqa: F401 - before the package
import torch
from full_size import write_full_size
from gpu_run import IMAGES, Bench, Changes, Run, bench_errors, write_disparities
from safetensors.torch import load_file

from semidavil.checkpoint import StopTraining
from semidavil.train import Report, prepare, train

VALIDATION = 4  # images
TRIALS_SECONDS = 300  # in which two processes start and are measured, on a busy machine too
CARD_24 = 24e9  # bytes of a card on which evaluation must fit
ATTENTIONS = ("dlg", "vlga", "wpct", "cross_attention", "none", "blank")
RIVALS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "unimatch": {"model.fusion": "none", "loss.name": "ce"},
    "semivl": {"model.fusion": "vlga", "loss.name": "ce"},
    "sdepth": {"model.fusion": "none", "loss.name": "ce"},
}
ANY_ORDER: Changes = {"runtime.deterministic": False}
WAYS: dict[str, Changes] = {
    "replayed": {},
    "queued": {"runtime.cuda_graphs": False},
    "replayed, any order": ANY_ORDER,
}


def steps(bench: Bench) -> None:
    """Every attention and method: time, memory, utilisation, waits, kernels that are not deterministic."""
    cases: dict[str, Changes] = {
        f"semidavil, {name}": {"model.fusion": name} for name in ATTENTIONS
    }
    cases |= {name: {"training.method": name, **more} for name, more in RIVALS.items()}
    for name, changes in cases.items():
        if bench.left() < 15:
            bench.say(part="steps", name=name, left_out=True)
            continue
        with bench_errors(bench, part="steps", name=name):
            run = Run(bench, changes)
            warned = run.not_deterministic()
            if warned:  # it could not be measured else
                torch.use_deterministic_algorithms(True, warn_only=True)
            found = run.speed(bench.steps(20))
            found |= {"waits": run.waits(), "not_deterministic": warned}
            bench.say(part="steps", name=name, **found)
            del run


# Words in the names of kernels that say what they are for; the first that fits counts.
KERNELS = {
    "attention": "flash fmha sdpa attention",
    "products and convolutions": "gemm nvjet cutlass xmma conv cudnn splitk wgrad dgrad mm_ addmm",
    "norms": "norm rowwise moments",
    "optimiser": "multi_tensor adam lerp",
    "sorts and indices": "sort radix index scatter gather topk",
    "copies and casts": "copy memcpy memset cat to_",
    "activations, losses and sums": "",
}


def profiled(bench: Bench) -> None:
    """Where the time of a SemiDAViL step goes: by kind of kernel, and the twenty longest kernels."""
    run = Run(
        bench, {"runtime.cuda_graphs": False}
    )  # a recording's kernels do not tell who asked for them
    run.milliseconds(3)
    trace = Path(bench.options.out) / "trace.json.gz" if bench.options.out else None
    step_ms, kernels = run.profile(3, trace)
    kinds = dict.fromkeys(KERNELS, 0.0)
    for name, milliseconds in kernels.items():
        words = (
            kind
            for kind, w in KERNELS.items()
            if not w or any(x in name.lower() for x in w.split())
        )
        kinds[next(words)] += milliseconds
    for kind, milliseconds in kinds.items():
        bench.say(
            part="profile",
            what=kind,
            ms=round(milliseconds, 2),
            share=round(milliseconds / step_ms, 3),
        )
    for name, milliseconds in sorted(kernels.items(), key=lambda pair: -pair[1])[:20]:
        bench.say(
            part="profile",
            what=name[:90],
            ms=round(milliseconds, 2),
            share=round(milliseconds / step_ms, 3),
        )


def data_wait(bench: Bench) -> None:
    """`train` itself with several numbers of workers: how long the loop waits for a batch."""
    for workers in (12, 4, 8, 16) if not bench.small else (0, 1):
        if bench.left() < 20:
            bench.say(part="data_wait", workers=workers, left_out=True)
            continue
        heard: list[dict[str, float]] = []
        last = 4 if bench.small else 100

        def listen(report: Report, heard: list = heard, last: int = last) -> None:
            if "train/loss" in report.metrics and report.step > last // 2:
                heard.append(report.metrics)
            if report.step == last:
                raise StopTraining

        # Of a run so long that its losses are read every 50 steps, as at the paper's scale.
        steps = 60 if bench.small else 1500
        config = bench.config({"runtime.num_workers": workers, "training.steps": steps})
        with suppress(StopTraining):
            train(config, listen)
        speed = statistics.median(one["train/images_per_second"] for one in heard)
        wait = statistics.fmean(one["train/data_wait_ms"] for one in heard)
        step_ms = 1000 * 3 * config.training.batch_size / speed
        bench.say(
            part="data_wait", workers=workers, data_wait_ms=round(wait, 2),
            share=round(wait / step_ms, 4), images_per_second=round(speed, 1),
            mfu=heard[-1].get("train/mfu") and round(heard[-1]["train/mfu"], 3),
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
        with run.autocast:
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
    """Two processes that train on one GPU at the same time, against one while the other waits."""
    command = [sys.executable, __file__, "--child", "--root", str(bench.root)]
    command += ["--device", bench.options.device, *(["--small"] if bench.small else [])]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    # One that hangs costs the parts after this one no more of the machine's time.
    timer = threading.Timer(TRIALS_SECONDS, lambda: [child.kill() for child in children])
    timer.start()
    try:
        for child in children:
            _answer(child, "ready")
        for count in (1, 2):
            for child in children[:count]:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            told = [json.loads(_answer(child, "{")) for child in children[:count]]
            bench.say(
                part="two_trials", trials=count, peak_gib=[one["peak_gib"] for one in told],
                images_per_second=round(sum(one["images_per_second"] for one in told), 1),
            )  # fmt: skip
    finally:
        timer.cancel()
        for child in children:
            child.kill()
            child.wait()


def _answer(child: "subprocess.Popen[str]", start: str) -> str:
    """The next line of a child that begins so, whatever else it prints."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line
    raise RuntimeError(f"a process that trains beside another has ended with {child.wait()}")


def child(bench: Bench) -> None:
    """One of `two_trials`: says that it is ready, and trains for a while whenever it is told to."""
    run = Run(bench, {})
    run.milliseconds(3)
    print("ready", flush=True)
    for _ in sys.stdin:
        number, seconds = 0, 0.3 if bench.small else 10.0
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            run.step()
            bench.synchronise()
            number += 1
        images = 3 * run.config.training.batch_size * number / (time.perf_counter() - start)
        print(json.dumps({"images_per_second": images, "peak_gib": bench.peak_gib()}), flush=True)


def launches(bench: Bench) -> None:
    """The same networks on images so small that the device waits for the host that queues its kernels."""
    for name, changes in (("replayed", {}), ("queued", {"runtime.cuda_graphs": False})):
        run = Run(bench, {"data.crop": [64, 64], "training.batch_size": 2, **changes})
        bench.say(part="launches", name=name, **run.speed(bench.steps(20)))


def ways(bench: Bench) -> None:
    """One step computed in several ways: replayed, queued kernel by kernel, and with sums in any order."""
    weights: list[list[torch.Tensor]] = []
    for name, changes in WAYS.items():
        run = Run(bench, changes)
        run.vary_captions()
        loss = [run.step() for _ in range(bench.steps(20))][-1].item()
        weights.append([p.detach().clone() for p in run.method.student.parameters()])
        equal = all(torch.equal(a, b) for a, b in zip(weights[0], weights[-1], strict=True))
        found = run.speed(bench.steps(20))
        bench.say(part="ways", name=name, equal_to_first=equal, loss=round(loss, 4), **found)
        del run


def compiled(bench: Bench) -> None:
    """`runtime.compile`: the first two steps, of which one is recorded, and the others."""
    for name, changes in (("", {}), ("any order", ANY_ORDER)):
        if bench.left() < 45 and not bench.small:
            bench.say(part="compiled", name=name, left_out=True)
            continue
        run = Run(bench, {"runtime.compile": True, **changes})
        start = time.perf_counter()
        run.milliseconds(2)
        seconds = round(time.perf_counter() - start, 1)
        found = run.speed(bench.steps(20))
        bench.say(part="compiled", name=name, first_two_steps_s=seconds, **found)
        del run


# In order of value, with the seconds that a part takes on an H100 at most.
PARTS: dict[str, tuple[int, Callable[[Bench], None]]] = {
    "steps": (90, steps),
    "ways": (30, ways),
    "profile": (15, profiled),
    "data_wait": (20, data_wait),
    "resume": (30, resume),
    "two_trials": (40, two_trials),
    "evaluation": (15, evaluation),
    "precision": (30, precision),
    "compiled": (50, compiled),
    "launches": (10, launches),
}


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
    options = parser.parse_args()
    if options.child:
        child(Bench(options))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        options.root = options.root or scratch
        return run_parts(Bench(options))


def run_parts(bench: Bench) -> int:
    """Runs the parts and prints their tables; the command's exit code."""
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
