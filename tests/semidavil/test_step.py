"""What a step notes of itself, and how it is computed on other devices."""

import copy
import math
from pathlib import Path

import pytest
import torch
from slow_cases import also_slow
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from volume_config import config_of

from semidavil.checkpoint import load_optimizer
from semidavil.config import preset
from semidavil.data.augment import finish
from semidavil.device import make_deterministic
from semidavil.experiments.optimizer import adamw
from semidavil.flops import device_peak, forward_flops, peak_flops
from semidavil.meter import Meter
from semidavil.names import METHODS
from semidavil.step import Divergence, NonFiniteLossError
from semidavil.train import open_experiment

CPU = torch.device("cpu")
# Of which steps are counted in each of the ways that there are; two have the step of `supervised`.
QUICK = ("semidavil", "unimatch", "urpc")
OTHERS = [n for n in METHODS if n not in (*QUICK, "source_only", "target_only")]


def test_only_the_first_step_that_is_not_finite_is_kept() -> None:
    divergence = Divergence(CPU)
    divergence.require_finite()
    for step, (total, part) in enumerate(
        [(1.0, 0.5), (math.nan, 2.5), (math.inf, 3.5), (1.0, 1.0)]
    ):
        losses = {"loss": torch.tensor(total), "part": torch.tensor(part, requires_grad=True)}
        divergence.watch(losses, step)
    with pytest.raises(NonFiniteLossError, match=r"at step 2 \(loss = nan, part = 2\.5\)"):
        divergence.require_finite()


def test_a_part_that_is_not_finite_is_no_divergence() -> None:
    """A term of weight 0 may be; what is minimised must not."""
    divergence = Divergence(CPU)
    divergence.watch({"loss": torch.tensor(1.0), "part": torch.tensor(math.nan)}, 0)
    divergence.require_finite()


class Clock:
    """Stands in for the clock of `semidavil.meter`."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_meter_tells_waiting_throughput_and_utilisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("semidavil.meter.time", clock)
    meter = Meter(4, CPU)
    meter.ideal_seconds = 0.25
    for wait in (0.5, 0.25):
        with meter.waiting():
            clock.now += wait
        clock.now += 1.0
        meter.add({"loss": torch.tensor(wait)}, images=6)
    restored = Meter(4, CPU)
    restored.load_state_dict(meter.state_dict())
    clock.now += 2.25
    meter.skip(1.0)
    values = meter.read()
    assert values["train/loss"] == 0.375
    assert values["train/images_per_second"] == pytest.approx(12 / 4)
    assert values["train/data_wait_ms"] == pytest.approx(375)
    assert values["train/mfu"] == pytest.approx(2 * 0.25 / 4)
    assert restored.read()["train/data_wait_ms"] == pytest.approx(375)
    with meter.waiting():
        clock.now += 0.125
    meter.add({"loss": torch.tensor(0.0)}, images=6)
    assert meter.read()["train/data_wait_ms"] == pytest.approx(125)


def test_cards_are_known_by_words_of_their_names() -> None:
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA L4"]
    assert [peak_flops(name) for name in names] == [989e12, 756e12, 312e12, 121e12]
    assert peak_flops("NVIDIA RTX A1000") is None  # no A100
    assert peak_flops("NVIDIA A10G") is None
    assert device_peak(CPU) is None


def test_forward_flops_are_two_for_each_product() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    assert forward_flops(lambda: layer(torch.ones(2, 3, 7, 11))) == 2 * (2 * 7 * 11) * 5 * 3 * 9


def test_attention_is_counted_also_where_pytorch_would_fuse_all_of_it() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.ones(3, 5, 8)
    counted = forward_flops(lambda: attention(tokens, tokens, tokens, need_weights=False))
    projections = 2 * (3 * 5) * 8 * (3 * 8 + 8)  # queries, keys and values, and the output
    products = 2 * (2 * 3 * 2 * 5 * 5 * 4)  # which PyTorch counts on GPUs alone
    assert counted in (projections, projections + products)


def step_of(layer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    layer(torch.arange(4.0)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_resumed_optimizer_computes_as_it_would_have_from_the_start() -> None:
    """A checkpoint of an earlier version goes on by the fused kernel, with its count of steps."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    before = torch.optim.AdamW([{"params": layer.parameters(), "scale": 1.0}], foreach=True)
    step_of(layer, before)
    other = copy.deepcopy(layer)
    after = adamw([{"params": other.parameters(), "scale": 1.0}])
    load_optimizer(after, before.state_dict())
    assert after.param_groups[0]["fused"]
    assert not after.param_groups[0]["foreach"]
    for state in after.state.values():
        assert isinstance(state["step"], Tensor)
        assert (state["step"].dtype, state["step"].item()) == (torch.float32, 1.0)
    step_of(layer, before)
    step_of(other, after)
    torch.testing.assert_close(other.weight, layer.weight, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_without_recordings_leaves_an_optimizer_ready_for_them() -> None:
    layer = nn.Linear(4, 3)
    mine, saved = (adamw([{"params": layer.parameters(), "scale": 1.0}]) for _ in range(2))
    mine.param_groups[0]["capturable"] = True
    load_optimizer(mine, saved.state_dict())
    assert mine.param_groups[0]["capturable"]


def test_adamw_by_its_equations() -> None:
    """Loshchilov and Hutter (ICLR 2019), algorithm 2, in float64; two steps."""
    torch.manual_seed(1)
    layer = nn.Linear(3, 2, bias=False)
    weight, lr, decay, m, v = layer.weight.detach().double(), 0.1, 0.3, 0.0, 0.0
    optimizer = adamw([{"params": layer.parameters(), "lr": lr, "weight_decay": decay}])
    for step in (1, 2):
        gradient = torch.randn(2, 3)
        layer.weight.grad = gradient
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient.double()
        v = 0.999 * v + 0.001 * gradient.double() ** 2
        moved = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight - lr * decay * weight - lr * moved
        torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-6, atol=1e-7)


def test_determinism_is_strict_where_kernels_have_a_choice() -> None:
    state = torch.get_deterministic_debug_mode()
    try:
        make_deterministic(0, 1, torch.device("cuda"))
        assert torch.get_deterministic_debug_mode() == 2  # an error
        assert not torch.utils.deterministic.fill_uninitialized_memory
        make_deterministic(0, 1, CPU)
        assert torch.get_deterministic_debug_mode() == 1
        make_deterministic(0, 1, torch.device("cuda"), strict=False)
        assert torch.get_deterministic_debug_mode() == 0
        assert torch.backends.cudnn.benchmark
        make_deterministic(0, 1, CPU, strict=False)  # which has no choice
        assert torch.get_deterministic_debug_mode() == 1
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.set_deterministic_debug_mode(state)


class Operations(TorchDispatchMode):
    """Counts the FLOPs of whatever is computed within, backward passes too."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


@pytest.mark.parametrize("name", [*QUICK, *also_slow(*OTHERS)])
def test_a_steps_flops_are_those_of_its_forward_and_backward_passes(
    name: str, tiny_toy: dict[str, str], tiny_abdomens: Path
) -> None:
    if METHODS[name].kind == "volumes":
        config = config_of(tiny_abdomens, training__method=name)
    else:
        config = preset("toy", {"training.method": name, "data.budget": 4, **tiny_toy})
    experiment = open_experiment(config, CPU)
    batch = finish(experiment.batches[0])
    experiment.method.train()
    expected = experiment.method.flops(batch)
    with Operations() as operations:
        experiment.method.losses(batch, 0)["loss"].backward()
    # The first layer has no gradient of its input. SemiVL trains few weights of its encoder, and its guide
    # decodes nothing; S-Depth has a head for depth, and URPC one for each scale, which is then upsampled.
    lowest = 0.85 if name == "semivl" else 0.95
    highest = 1.12 if name == "urpc" else 1.02
    assert lowest * expected < operations.total < highest * expected
