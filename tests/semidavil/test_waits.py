"""No training step reads a value back, or has a shape that depends on data: a GPU would wait for it."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from slow_cases import also_slow
from torch import Tensor
from volume_config import config_of
from waits import no_waits

from semidavil.config import Config, preset
from semidavil.data.augment import finish
from semidavil.device import to_device
from semidavil.experiments.base import Experiment
from semidavil.meter import Meter
from semidavil.names import FUSIONS, LOSSES, METHODS
from semidavil.step import TrainingStep
from semidavil.train import open_experiment

CPU = torch.device("cpu")

VALUES = torch.rand(4, 4, requires_grad=True)
MASK, WHOLE = VALUES.detach() > 0.5, torch.tensor([1, 2])
WAITING: dict[str, Callable[[], object]] = {
    "aten::_local_scalar_dense": lambda: VALUES.detach().sum().item(),
    "aten::is_nonzero": lambda: None if MASK.any() else 0,
    "aten::nonzero": lambda: torch.where(MASK),
    "aten::bincount": lambda: WHOLE.bincount(),
    "aten::masked_select": lambda: VALUES.masked_select(MASK),
    "aten::_unique2": lambda: WHOLE.unique(),
    "aten::equal": lambda: torch.equal(WHOLE, WHOLE),
    "aten::repeat_interleave.Tensor": lambda: torch.repeat_interleave(WHOLE, WHOLE),
    "aten::index.Tensor": lambda: VALUES[MASK],
    "aten::index_put_": lambda: VALUES.detach().clone().__setitem__(MASK, 0.0),
    "tolist": lambda: WHOLE.tolist(),
    "numpy": lambda: WHOLE.numpy(),
    "cpu": lambda: WHOLE.cpu(),
    "to": lambda: WHOLE.to("cpu"),
}
NOT_WAITING: dict[str, Callable[[], Tensor]] = {
    "whole numbers as an index": lambda: VALUES[WHOLE],
    "where with three arguments": lambda: VALUES.where(MASK, 0.0),
    "largest": lambda: VALUES.topk(2).values,
    "clipping": lambda: torch.nn.utils.clip_grad_norm_([VALUES], 1.0),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name: str) -> None:
    with no_waits() as found:
        WAITING[name]()
    wanted = "aten::_local_scalar_dense" if name == "aten::is_nonzero" else name
    assert [one.partition(" at test_waits.py:")[0] for one in found] == [wanted]


@pytest.mark.parametrize("name", NOT_WAITING)
def test_what_does_not_wait_is_let_through(name: str) -> None:
    with no_waits() as found:
        NOT_WAITING[name]()
    assert found == []


def test_waiting_in_a_backward_pass_is_found() -> None:
    chosen = VALUES[MASK]
    with no_waits() as found:
        chosen.sum().backward()
    assert [one.partition(" at test_waits.py:")[0] for one in found] == ["aten::index_put"]


def waits_of_a_step(config: Config) -> list[str]:
    """What waits in the second step of a run, from its batch on."""
    experiment: Experiment = open_experiment(config, CPU)
    experiment.method.train()
    take_step = TrainingStep(experiment, config.training, nullcontext(), CPU)
    meter = Meter(5, CPU)
    take_step(finish(to_device(experiment.batches[0], CPU)), 0)
    batch = experiment.batches[1]
    with no_waits() as found:
        losses = take_step(finish(to_device(batch, CPU)), 1)
        meter.add(losses, 1)
    assert losses["loss"].isfinite()
    return found


STREET = [name for name, method in METHODS.items() if method.kind == "images"]


@pytest.mark.parametrize(
    "changes",
    [
        *({"training.method": name} for name in STREET),
        *also_slow(
            *({"loss.name": name} for name in LOSSES),  # also quick in test_losses.py
            *({"model.fusion": name} for name in FUSIONS),
            {"training.consistency_scale": "matched", "training.consistency_over": "confident"},
            {"training.supervised": "joint", "training.consistency_weight": 0.0},
        ),
    ],
    ids=lambda changes: " ".join(changes.values()) if len(changes) == 1 else " ".join(changes),
)
def test_no_step_of_images_waits(changes: dict[str, object], tiny_toy: dict[str, str]) -> None:
    small = {"training.batch_size": 2, "data.budget": 4, "training.confidence": 0.1}
    found = waits_of_a_step(preset("toy", {**small, **changes, **tiny_toy}))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.kind == "volumes"])
@pytest.mark.parametrize("loss", ["dyce", "ce"])
@pytest.mark.slow
def test_no_step_of_volumes_waits(method: str, loss: str, tiny_abdomens: Path) -> None:
    config = config_of(tiny_abdomens, training__method=method, loss__name=loss)
    found = waits_of_a_step(config)
    assert not found, "\n".join(found)
