"""What a training step costs beside the passes through the networks that its method cannot do without.

    python benchmarks/steps.py [--quick]

Ours is a step of the toy preset on a batch that is there: strong views and CutMix, forward passes, losses,
backward pass, clipping, AdamW, EMA, the meter. The bare work is the same student's forward and backward pass
on the same images, with torch's fused cross-entropy on the labelled and strong views, and the forward passes
of the teacher (UniMatch and SemiVL: of the student, S-Depth: of the depth head) on the weak one.
Milliseconds of one core, medians, measured in turn.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from rows import Row, print_rows
from timing import in_turn

from semidavil.config import Config, preset
from semidavil.data.augment import finish
from semidavil.device import make_deterministic
from semidavil.meter import Meter
from semidavil.methods.base import Batch, forward_groups
from semidavil.methods.mean_teacher import MeanTeacher
from semidavil.methods.sdepth import SDepth
from semidavil.methods.semivl import SemiVL
from semidavil.methods.unimatch import UniMatch
from semidavil.names import FUSIONS, METHODS
from semidavil.step import TrainingStep
from semidavil.train import open_experiment, prepare

CPU = torch.device("cpu")
GOAL = 1.10
REPEATS, QUICK_REPEATS = 31, 3


def measure(quick: bool = False) -> list[Row]:
    """A row for each attention of SemiDAViL, and for each other method."""
    configs = {f"semidavil, {fusion}": {"model.fusion": fusion} for fusion in FUSIONS}
    methods = [name for name, traits in METHODS.items() if traits.kind == "images"]
    configs |= {name: {"training.method": name} for name in methods if name != "semidavil"}
    configs["semivl"]["model.fusion"] = "vlga"  # its own
    rows = []
    for name, changes in configs.items():
        config = preset("toy", changes)
        prepare(config, progress=False)
        ours, bare = times(config, QUICK_REPEATS if quick else REPEATS)
        rows.append(Row(f"toy step, {name}", ours, bare, "its passes alone", goal=GOAL))
    return rows


def times(config: Config, repeats: int) -> tuple[float, float]:
    """Median milliseconds of one core: of a step, and of its passes alone."""
    make_deterministic(config.seed, 1, CPU)
    experiment = open_experiment(config, CPU)
    experiment.method.train()
    take_step = TrainingStep(experiment, config.training, nullcontext(), CPU)
    meter = Meter(config.training.steps, CPU)
    raw = experiment.batches[0]
    batch = finish(raw)

    def ours() -> None:
        meter.add(take_step(finish(raw), 0), 1)

    return in_turn(ours, passes_alone(experiment.method, batch), repeats)


def passes_alone(method: torch.nn.Module, batch: Batch) -> Callable[[], None]:
    """The passes through the networks of a method's step, with a plain cross-entropy."""
    labelled = [batch[name] for name in ("source", "labelled") if name in batch]
    groups = [(part["image"], method.language(part)) for part in labelled]
    targets = [part["label"] for part in labelled]
    weak = batch.get("unlabelled")
    alone = []  # the weak view, where the student encodes it
    if weak is not None:
        language = method.language(weak)
        groups += [(view, language) for view in weak["strong"]]
        targets += [torch.zeros_like(labelled[0]["label"])] * len(weak["strong"])
        if isinstance(method, UniMatch | SDepth):
            alone = [(weak["image"], language)]

    def work() -> None:
        if isinstance(method, MeanTeacher):
            with torch.no_grad():
                method.teacher(weak["image"], language)
        logits, encoded = forward_groups(method.student, groups, alone)
        losses = [
            F.cross_entropy(x, y, ignore_index=255) for x, y in zip(logits, targets, strict=True)
        ]
        if isinstance(method, UniMatch):
            with torch.no_grad():
                method.student.decode(encoded[0].features, language)
            perturbed = method.student.decode(encoded[0].features, language)
            losses.append(F.cross_entropy(perturbed, targets[-1]))
        if isinstance(method, SemiVL):
            with torch.no_grad():
                method.guide.vision(weak["image"])
        if isinstance(method, SDepth):
            losses.append(method.depth_head(encoded[0].features.vision).mean())
        torch.stack(losses).sum().backward()
        method.zero_grad(set_to_none=True)

    return work


if __name__ == "__main__":
    print_rows(measure, __doc__)
