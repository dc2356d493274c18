"""Rival methods, term by term, against plain computations in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_method import CLASSES, double, encode, make_batch, make_method
from stopped_run import train_until
from torch import Tensor, nn

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, preset
from semidavil.experiments.street import build_method
from semidavil.language.concepts import concepts_of
from semidavil.methods.sdepth import berhu, mean_known, mix, nearer
from semidavil.methods.semivl import SemiVL
from semidavil.models.segmenter import Features
from semidavil.models.vlm import VLM, load_vlm
from semidavil.train import train

TH = 0.4


def swapped(values: Tensor, box: Tensor) -> Tensor:
    """CutMix in a batch of two, written out."""
    out = values.clone()
    for i, other in ((0, 1), (1, 0)):
        for place in box[i].nonzero():
            where = (..., *place.tolist())
            out[i][where] = values[other][where]
    return out


def masked_ce(logits: Tensor, labels: Tensor, keep: Tensor | float) -> Tensor:
    return (nn.functional.cross_entropy(logits, labels, reduction="none") * keep).mean()


def unimatch_terms(
    method: nn.Module, part: dict, temperature: float = 1.0
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Confidence, labels, and the student's logits of s1, s2 and the weak view."""
    language = part["language"]
    weak = method.student(part["image"], language)
    confidence, labels = (weak.detach() / temperature).softmax(1).max(1)
    strong = [
        method.student(swapped(part["strong"][v], part["cutmix"][v]), language) for v in range(2)
    ]
    return confidence, labels, [*strong, weak]


def same_gradients(method: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    pairs = zip(
        *(torch.autograd.grad(value, parameters, allow_unused=True) for value in (ours, theirs)),
        strict=True,
    )
    for one, other in pairs:
        if one is None or other is None:
            assert one is None
            assert other is None
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def supervised_ce(method: nn.Module, batch: dict) -> Tensor:
    terms = [
        nn.functional.cross_entropy(method.student(part["image"], part["language"]), part["label"])
        for part in (batch["source"], batch["labelled"])
    ]
    return sum(terms) / 2


@pytest.mark.parametrize("temperature", [1.0, 1.1])
def test_unimatch_term_by_term(temperature: float) -> None:
    # Without dropout the perturbed features are the weak ones, so every term can be written out.
    settings = {"confidence": TH, "temperature": temperature, "rivals__unimatch_dropout": 0.0}
    method = make_method("unimatch", **settings).double()
    batch = double(make_batch("source", "labelled", "unlabelled"))
    losses, part = method.losses(batch, 0), batch["unlabelled"]
    confidence, labels, logits = unimatch_terms(method, part, temperature)
    total = torch.zeros((), dtype=torch.float64)
    for weight, view, one in zip((0.25, 0.25, 0.5), (0, 1, None), logits, strict=True):
        arrays = (labels, confidence)
        if view is not None:
            arrays = tuple(swapped(x, part["cutmix"][view]) for x in arrays)
        target, sure = arrays
        assert 0 < (sure >= TH).double().mean() < 1
        total = total + weight * masked_ce(one, target, sure >= TH)
    expected = (supervised_ce(method, batch) + total) / 2
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    same_gradients(method, losses["loss"], expected)


def test_perturbed_features_lose_half_their_channels_and_keep_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    ones = Features(
        torch.ones(4, 400, 2, 2), (torch.ones(4, 300, 4, 4), torch.ones(4, 9, 2, 2)), (8, 8)
    )
    dropped = ones.drop_channels(0.5, generator)
    for part in (dropped.vision, *dropped.details):
        assert set(part.unique().tolist()) <= {0.0, 2.0}
        assert torch.equal(part.amax((2, 3)), part.amin((2, 3)))  # whole channels
    assert dropped.vision.mean().item() == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(dropped.vision[0], dropped.vision[1])


@pytest.mark.parametrize("step", [0, 30])
def test_semivl_adds_the_frozen_clips_labels(step: int) -> None:
    settings = {"rivals__unimatch_dropout": 0.0, "steps": 40, "confidence": TH}
    method = make_method("semivl", **settings).double()
    batch = double(make_batch("source", "labelled", "unlabelled"))
    part = batch["unlabelled"]
    generator = torch.Generator().manual_seed(3)
    sure = 0.8 + 0.2 * torch.rand(2, 16, 16, generator=generator)
    said = torch.randint(0, CLASSES, (2, 16, 16), generator=generator)
    method.guide = lambda images: (sure, said)
    losses = method.losses(batch, step)
    without = make_method("unimatch", rivals__unimatch_dropout=0.0, confidence=TH).double()
    base = without.losses(batch, step)["loss"]

    _, _, logits = unimatch_terms(method, part)
    guidance = torch.zeros((), dtype=torch.float64)
    for weight, view, one in zip((0.25, 0.25, 0.5), (0, 1, None), logits, strict=True):
        arrays = (said, sure >= 0.9)
        if view is not None:
            arrays = tuple(swapped(x, part["cutmix"][view]) for x in arrays)
        target, keep = arrays
        guidance = guidance + weight * masked_ce(one, target, keep)
    factor = 0.1 * (1 - step / 40)
    assert losses["loss_guidance"].item() == pytest.approx(guidance.item(), rel=1e-6)
    expected = base + factor * guidance
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    ours = torch.autograd.grad(losses["loss"], method.student.decoder.classify.weight)[0]
    plain = torch.autograd.grad(base, without.student.decoder.classify.weight)[0]
    extra = torch.autograd.grad(factor * guidance, method.student.decoder.classify.weight)[0]
    torch.testing.assert_close(ours, plain + extra, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_vlm("toy", "bundled")


def test_semivl_trains_attention_and_positions_of_its_encoder_alone(vlm: VLM) -> None:
    config = preset("toy", {"training.method": "semivl", "model.fusion": "vlga"})
    method = build_method(config, load_vlm("toy", "bundled"), 19)
    assert isinstance(method, SemiVL)
    trained = {n for n, p in method.student.vision.named_parameters() if p.requires_grad}
    assert "tower.positional_embedding" in trained
    assert all(".attn." in name or name.endswith("positional_embedding") for name in trained)
    blocks = len(vlm.vision.tower.transformer.resblocks)
    assert len([name for name in trained if ".attn." in name]) == 4 * blocks
    # Language is one token per class, whatever the caption says.
    language = method.language({"language": encode(["a", "b"])})
    assert language.tokens.shape == (2, 19, vlm.text.dim)
    assert torch.equal(language.tokens[0], language.tokens[1])


def test_class_definitions_average_the_sentence_features_of_the_concepts(vlm: VLM) -> None:
    method = build_method(preset("toy", {"training.method": "semivl"}), vlm, 19)
    texts = [f"a photo of a {concept}" for concept in concepts_of("train")]
    assert texts[0] == "a photo of a train"
    assert len(texts) == 2
    # The tower's own pooling, before its projection: what it makes of the projection's inverse.
    with torch.no_grad():
        ids = vlm.text.tokenizer(texts)
        pooled = vlm.text.tower(ids) @ torch.linalg.pinv(vlm.text.tower.text_projection)
    expected = pooled.mean(0)
    torch.testing.assert_close(method.definitions.tokens[0, 16], expected, rtol=1e-3, atol=1e-4)


def test_the_guide_is_frozen_clip_by_the_likeliest_concept_of_each_class(vlm: VLM) -> None:
    method = build_method(preset("toy", {"training.method": "semivl"}), vlm, 19)
    images = torch.rand(2, 3, 64, 64)
    confidence, labels = method.guide(images)
    embeddings = vlm.vision.embed(images)
    scores = []
    for name in BENCHMARKS["gta5-cityscapes"].classes:
        text = vlm.text.embed([f"a photo of a {concept}" for concept in concepts_of(name)])
        each = [torch.einsum("behw,e->bhw", embeddings, one) for one in text]
        scores.append(torch.stack(each).max(0).values * vlm.logit_scale)
    expected = nn.functional.interpolate(torch.stack(scores, 1), (64, 64), mode="bilinear")
    torch.testing.assert_close(confidence, expected.softmax(1).max(1).values)
    assert (labels == expected.argmax(1)).float().mean() > 0.999
    before = [p.clone() for p in method.guide.vision.parameters()]
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1)
    assert all(
        torch.equal(a, b) for a, b in zip(before, method.guide.vision.parameters(), strict=True)
    )
    assert not any("guide" in name for name in method.state_dict())


def test_sdepth_term_by_term() -> None:
    settings = {"rivals__sdepth_confidence": TH, "rivals__sdepth_weight": 0.3}
    method = make_method("sdepth", consistency_weight=0.7, **settings).double()
    batch = double(make_batch("source", "labelled", "unlabelled"))
    losses, part = method.losses(batch, 0), batch["unlabelled"]
    language, near = part["language"], part["disparity"]
    confidence, labels = method.teacher(part["image"], language).softmax(1).max(1)

    means = [near[i][near[i] > 0].mean() for i in range(2)]
    mask = torch.stack([near[i] > near[1 - i] - 0.03 * means[i] for i in range(2)])
    pick = lambda x: torch.stack(  # noqa: E731
        [torch.where(mask[i], x[i], x[1 - i]) for i in range(2)]
    )
    assert 0.1 < mask.double().mean() < 0.95
    logits = method.student(pick(part["strong"][0]), language)
    unsupervised = masked_ce(logits, pick(labels), 1.0)
    quality = (confidence > TH).double().mean()

    found = nn.functional.softplus(method.depth_head(method.student.vision(part["image"])))
    found = nn.functional.interpolate(found, (16, 16), mode="bilinear")[:, 0]
    errors = torch.cat([(found[i] - near[i] / means[i])[near[i] > 0].abs() for i in range(2)])
    limit = errors.max().item() / 5
    depth = torch.stack(
        [e if e <= limit else (e**2 + limit**2) / (2 * limit) for e in errors]
    ).mean()
    expected = supervised_ce(method, batch) + 0.7 * quality * unsupervised + 0.3 * depth
    assert 0 < quality < 1
    assert losses["loss_depth"].item() == pytest.approx(depth.item(), rel=1e-6)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    same_gradients(method, losses["loss"], expected)


def test_depthmix_takes_what_is_nearer() -> None:
    near = torch.tensor([[[4.0, 1.0, 0.0]], [[2.0, 3.0, 0.0]]])
    mask = nearer(near, near.roll(-1, dims=0), torch.tensor(0.1))
    assert mask.tolist() == [[[True, False, True]], [[False, True, True]]]
    values = torch.tensor([[[10, 11, 12]], [[20, 21, 22]]])
    assert mix(values, mask).tolist() == [[[10, 21, 12]], [[10, 21, 22]]]
    assert mean_known(near).flatten().tolist() == pytest.approx([2.5, 2.5])


def test_berhu_by_hand_and_without_known_depth() -> None:
    found = torch.tensor([[[1.0, 2.0, 10.0]]], requires_grad=True)
    target, known = torch.zeros(1, 1, 3), torch.tensor([[[True, True, False]]])
    # c = 2 / 5: both errors are beyond it.
    expected = ((1 + 0.16) / 0.8 + (4 + 0.16) / 0.8) / 2
    assert berhu(found, target, known).item() == pytest.approx(expected)
    nothing = berhu(found, target, torch.zeros_like(known))
    nothing.backward()
    assert nothing == 0
    assert (found.grad == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["unimatch", "unimatch_v2", "semidavil_released", "semivl", "sdepth"]
)
def test_rivals_train_and_resume_exactly(
    method: str, tiny_toy: dict[str, str], tmp_path: Path
) -> None:
    changes = {
        "training.method": method, "data.budget": 4, "training.steps": 6,
        "training.warmup_steps": 0, "runtime.checkpoint_every": 3, "training.confidence": 0.0,
        "data.selection": "depth" if method == "sdepth" else "random", **tiny_toy,
    }  # fmt: skip
    config = preset("toy", changes)
    whole = train(config, checkpoint_dir=tmp_path / "whole")

    train_until(config, 4, tmp_path / "parts")
    resumed = train(config, checkpoint_dir=tmp_path / "parts")
    assert np.array_equal(whole.confusion, resumed.confusion)
    assert isinstance(Config.from_params(config.to_params()), Config)
