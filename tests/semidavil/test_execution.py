"""How a network is executed changes no result: compiled, or with its activations computed twice."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from small_clip import RESNET, save_clip
from torch import Tensor
from torch._dynamo.utils import counters

from semidavil.config import preset
from semidavil.models.execution import execute_as
from semidavil.models.segmenter import Segmenter, build_segmenter
from semidavil.models.vlm import load_vlm
from semidavil.settings import Runtime

CAPTIONS = ["a road with cars at the left", "sky"]


def make(folder: str = "toy") -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(preset("toy").model, load_vlm(folder, "bundled"), 19)


def step(network: Segmenter) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of two images, and the gradient at every parameter that has one."""
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    logits = network(images, load_vlm("toy", "bundled").text(CAPTIONS))
    logits.square().mean().backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return logits.detach(), found


def test_activations_computed_twice_give_the_same_gradients_to_the_last_bit() -> None:
    plain, twice = make(), make()
    execute_as(Runtime(checkpoint_activations=True), [twice])
    calls = []
    twice.vision.tower.transformer.resblocks[0].ln_1.register_forward_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    (logits, gradients), (again, others) = step(plain), step(twice)
    assert len(calls) == 2  # forward, and once more on the way back
    assert torch.equal(logits, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert plain.state_dict().keys() == twice.state_dict().keys()


def test_batch_norms_are_not_computed_twice(tmp_path: Path) -> None:
    save_clip(tmp_path, **RESNET)
    network = make(str(tmp_path))
    with pytest.raises(ValueError, match="for vision transformers"):
        execute_as(Runtime(checkpoint_activations=True), [network])


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="inductor needs a C++ compiler"
)
def test_a_compiled_network_computes_the_same() -> None:
    plain, compiled = make(), make()
    execute_as(Runtime(compile=True), [compiled])
    before = counters["stats"]["unique_graphs"]
    (logits, gradients), (others, found) = step(plain), step(compiled)
    assert counters["stats"]["unique_graphs"] > before
    torch.testing.assert_close(others, logits, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
