"""Losses of ten steps and the score of every method, attention and loss, as they were.

A change that means to change no number proves it here. One that means to writes the file anew, raises
`RESULTS_VERSION` where results change, and shows in its diff by how much:

    SEMIDAVIL_GOLDEN=write pytest tests/semidavil/test_golden.py

Numbers are the same to the last digit on one kind of CPU with one PyTorch; elsewhere they are compared
within `TOLERANCE`.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch
from slow_cases import also_slow

from semidavil.config import preset
from semidavil.names import FUSIONS, LOSSES, METHODS
from semidavil.train import Report, train

FILE = Path(__file__).with_name("golden.json")
WRITE = os.environ.get("SEMIDAVIL_GOLDEN") == "write"
# Measured without the CPU's vector instructions (ATEN_CPU_CAPABILITY=default): losses within 0.6%, scores
# within 0.14.
TOLERANCE, SCORE_TOLERANCE = 2e-2, 0.5  # of a loss, relative; of a score, in per cent
STEPS = 10
STREET = {
    "data.budget": 4, "training.steps": STEPS, "training.batch_size": 2, "training.warmup_steps": 2,
    "training.confidence": 0.1,  # after so few steps nothing is surer: consistency would teach nothing
    "runtime.device": "cpu", "runtime.threads": 1,
}  # fmt: skip
VOLUMES = STREET | {"data.benchmark": "synapse", "data.budget": 2, "volumes.width": 4}

VARIANTS: dict[str, dict[str, object]] = {
    **{name: {"training.method": name} for name in METHODS},
    **{f"semidavil/{name}": {"model.fusion": name} for name in FUSIONS if name != "dlg"},
    **{
        f"supervised/{name}": {"training.method": "supervised", "loss.name": name}
        for name in LOSSES
        if name != "dyce"
    },
    "semidavil/matched": {"training.consistency_scale": "matched"},
    "semidavil/alone": {"training.consistency_weight": 0.0},
    "semidavil/released": {
        "training.consistency_over": "confident",
        "training.supervised": "joint",
    },
}
# That share least of what they compute, of those that are quick.
QUICK = ("semidavil", "supervised")


def environment() -> str:
    """What the last digit depends on: the CPU, the instructions that are used, PyTorch's version."""
    file = Path("/proc/cpuinfo")
    lines = [line.split(":") for line in file.read_text().splitlines()] if file.exists() else []
    about = {line[0].strip(): line[-1].strip() for line in lines}
    names = ("model name", "cpu family", "model", "stepping", "cache size")
    cpu = "/".join(about.get(name, "?") for name in names) if about else platform.processor()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{cpu}, {instructions}, PyTorch {torch.__version__}"


@pytest.mark.parametrize(
    "variant",
    [*QUICK, *also_slow(*(name for name in VARIANTS if name not in QUICK))],
)
def test_the_numbers_are_those_of_before(
    variant: str, tiny_toy: dict[str, str], tiny_abdomens: Path
) -> None:
    volumes = METHODS[VARIANTS[variant].get("training.method", "semidavil")].kind == "volumes"
    place = {**tiny_toy, "runtime.data_root": str(tiny_abdomens)} if volumes else tiny_toy
    config = preset("toy", {**(VOLUMES if volumes else STREET), **place, **VARIANTS[variant]})
    reports: list[Report] = []
    result = train(config, reports.append)
    losses = [report.metrics["train/loss"] for report in reports]
    score = result.metrics["dice" if volumes else "miou"]
    assert len(losses) == STEPS

    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if WRITE:
        golden["environment"] = environment()
        golden[variant] = {"losses": losses, "score": score}
        FILE.write_text(json.dumps(golden, indent=1) + "\n")
        return
    exact = golden["environment"] == environment()
    then = golden[variant]
    assert losses == (then["losses"] if exact else pytest.approx(then["losses"], rel=TOLERANCE))
    assert score == (then["score"] if exact else pytest.approx(then["score"], abs=SCORE_TOLERANCE))
