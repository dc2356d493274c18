"""UniMatch V2, term by term, against a plain computation in float64."""

import pytest
import torch
from small_method import CLASSES, double, make_batch, make_method
from test_rivals import same_gradients, supervised_ce, swapped
from torch import Tensor, nn

from semidavil.experiments.street import parameter_groups
from semidavil.methods.unimatch_v2 import UniMatchV2, complementary_masks
from semidavil.models.segmenter import Features
from semidavil.seeds import seed_of

STEP, TH = 7, 0.4


def masks_of(channels: list[int], count: int = 2, seed: int = 0) -> list[Tensor]:
    return complementary_masks(channels, count, torch.Generator().manual_seed(seed))


def test_what_one_view_loses_the_other_keeps() -> None:
    count = 7
    masks = masks_of([400, 300], count)
    kept_whole = []
    for mask, channels in zip(masks, (400, 300), strict=True):
        assert mask.shape == (2 * count, channels)
        first, second = mask.chunk(2)
        assert (first + second).unique().tolist() == [2.0]
        assert set(mask.unique().tolist()) == {0.0, 1.0, 2.0}
        whole = (first == 1).all(1)
        assert whole.sum() == count // 2
        assert not (first[~whole] == 1).any()
        share = (first[~whole] == 2).double().mean(1)
        assert ((share - 0.5).abs() < 4 * 0.5 / channels**0.5).all()  # four standard deviations
        kept_whole.append(whole)
    assert torch.equal(*kept_whole), "an image is whole in all its features or in none"
    assert not torch.equal(
        masks[0][~kept_whole[0].repeat(2)][0], masks[0][~kept_whole[0].repeat(2)][1]
    )


def test_every_image_is_as_often_whole_and_every_channel_as_often_dropped() -> None:
    draws = [masks_of([5], 4, seed)[0][:4] for seed in range(2000)]
    whole = torch.stack([(draw == 1).all(1) for draw in draws]).double().mean(0)
    assert ((whole - 0.5).abs() < 4 * (0.25 / 2000) ** 0.5).all()
    dropped = torch.stack([draw == 0 for draw in draws]).double().mean(0)
    assert ((dropped - 0.25).abs() < 4 * (0.1875 / 2000) ** 0.5).all()


@pytest.mark.parametrize("temperature", [1.0, 1.1])
def test_the_loss_term_by_term(temperature: float) -> None:
    settings = {"confidence": TH, "temperature": temperature, "consistency_weight": 0.7}
    method = make_method("unimatch_v2", **settings).double()
    with torch.no_grad():  # a teacher of its own
        for parameter in method.teacher.parameters():
            parameter.mul_(1.3)
    batch = double(make_batch("source", "labelled", "unlabelled"))
    part = batch["unlabelled"]
    losses = method.losses(batch, STEP)

    weak = method.teacher(part["image"], part["language"]) / temperature
    confidence, labels = weak.softmax(1).max(1)
    keep = confidence >= TH
    assert 0.05 < keep.double().mean() < 0.95
    network, drawn = method.student, seed_of(method.config.seed, STEP, 0xC0D2)
    rows = masks_of([8, 2, 4], seed=drawn)  # of the encoder and the decoder's two convolutions
    consistency = torch.zeros((), dtype=torch.float64)
    for view in range(2):
        box = part["cutmix"][view]
        images = swapped(part["strong"][view], box)
        target, sure = swapped(labels, box), swapped(keep, box)
        for i in range(2):
            seen = network.encode(images[i : i + 1])
            maps = []
            for features, mask in zip((seen.vision, *seen.details), rows, strict=True):
                changed = [
                    features[0, c] * mask[2 * view + i, c].item() for c in range(features.shape[1])
                ]
                maps.append(torch.stack(changed)[None])
            dropped = Features(maps[0], (maps[1], maps[2]), seen.size)
            logits = network.decode(dropped, part["language"][i : i + 1])
            each = nn.functional.cross_entropy(logits, target[i : i + 1], reduction="none")
            consistency = consistency + (each * sure[i]).sum() / (2 * 2 * 16 * 16)
    expected = (supervised_ce(method, batch) + 0.7 * consistency) / 2
    assert losses["loss_con"].item() == pytest.approx(consistency.item(), rel=1e-6)
    assert losses["confident"].item() == pytest.approx(keep.double().mean().item())
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    same_gradients(method, losses["loss"], expected)


def test_channels_depend_on_seed_and_step_alone() -> None:
    batch = make_batch("source", "unlabelled")

    def loss(step: int, seed: int = 0) -> float:
        method = make_method("unimatch_v2", confidence=0.0)
        method.config = method.config.replace({"seed": seed})
        torch.rand(step + seed)  # whatever ran before
        return method.losses(batch, step)["loss_con"].item()

    assert loss(4) == loss(4)
    assert len({loss(4), loss(5), loss(4, seed=1)}) == 3


def test_the_teacher_is_reported_and_follows_by_ema() -> None:
    method = make_method("unimatch_v2", rivals__unimatch_v2_ema=0.9)
    assert isinstance(method, UniMatchV2)
    assert list(method.networks()) == ["teacher", "student"]
    before = method.teacher.decoder.classify.weight.clone()
    with torch.no_grad():
        method.student.decoder.classify.weight.add_(1.0)
    method.after_step(1000)
    torch.testing.assert_close(method.teacher.decoder.classify.weight, before + 0.1)
    assert method.student.decoder.classify.out_channels == CLASSES


def test_it_trains_at_its_authors_rates() -> None:
    """Cityscapes: 5e-6 for the encoder, 40 times that for the rest, weight decay 0.01, EMA 0.996."""
    method = make_method("unimatch_v2")  # `training.lr` is 1e-4, `weight_decay` 2e-4, `ema` 0.999
    rest, backbone = parameter_groups(method, method.rates())
    assert [id(p) for p in backbone["params"]] == [
        id(p) for p in method.student.vision.parameters()
    ]
    assert backbone["lr"] == pytest.approx(5e-6)
    assert rest["lr"] == pytest.approx(40 * 5e-6)
    assert rest["weight_decay"] == backbone["weight_decay"] == 0.01
    assert method.ema() == 0.996
