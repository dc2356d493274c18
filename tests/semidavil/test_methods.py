"""Training steps: what each term teaches, and whom."""

import copy
import inspect
import math
import re
from dataclasses import replace

import pytest
import torch
from small_method import (
    CLASSES,
    STRIDE,
    double,
    encode,
    make_batch,
    make_method,
    make_segmenter,
)
from torch import nn

from semidavil.config import is_read
from semidavil.data.streams import streams_of
from semidavil.experiments.street import parameter_groups
from semidavil.methods.base import paste
from semidavil.methods.ema import ema_update
from semidavil.methods.semidavil import SemiDAViL
from semidavil.methods.table import METHODS as CLASSES_OF
from semidavil.models.text import Language
from semidavil.names import METHODS
from semidavil.settings import Rivals


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.kind == "images"])
@pytest.mark.parametrize("missing", [None, "source", "labelled"])
def test_a_step_trains_the_whole_student_and_never_the_teacher(
    name: str, missing: str | None
) -> None:
    method = make_method(name, confidence=0.0)
    streams = METHODS[name].streams - {missing}
    if not streams - {"unlabelled"}:
        pytest.skip(f"{name} learns from {missing} alone")
    losses = method.losses(make_batch(*streams), 0)
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    trained = [p for p in method.student.parameters() if p.requires_grad]
    assert len(trained) > 5
    assert all(p.grad is not None for p in trained)
    for other, network in method.networks().items():
        if other != "student":
            assert all(p.grad is None and not p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_it_is_known_which_settings_of_rivals_a_method_reads(name: str) -> None:
    ours = [c for c in CLASSES_OF[name].__mro__ if c.__module__.startswith("semidavil.")]
    source = "".join(map(inspect.getsource, ours))
    read = set(re.findall(r"\brivals\.(\w+)", source)) & set(Rivals.model_fields)
    known = {field for field in Rivals.model_fields if is_read(f"rivals.{field}", name)}
    assert known == read
    of_volumes = {is_read(f"volumes.{field}", name) for field in ("patch", "lr", "width")}
    assert of_volumes == {METHODS[name].kind == "volumes"}
    assert is_read("volumes.uamt_passes", name) == (name == "uamt")
    assert is_read("training.lr", name)


def test_supervised_loss_averages_the_streams() -> None:
    method = make_method("supervised")
    batch = make_batch("source", "labelled")
    expected = 0.0
    for part in batch.values():
        logits = method.student(part["image"], part["language"])
        expected += 0.5 * nn.functional.cross_entropy(logits, part["label"]).item()
    assert method.losses(batch, 0)["loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("temperature", "over"), [(1.0, "all"), (0.5, "all"), (1.0, "confident")])
def test_semidavil_total_loss_term_by_term(temperature: float, over: str) -> None:
    # In float64, so that no pixel is on the threshold by rounding.
    teacher, batch = make_segmenter(seed=5).double(), double(make_batch("source", "unlabelled"))
    part = batch["unlabelled"]
    logits = teacher(part["image"], part["language"]) / temperature
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    confidence, labels = probabilities.max(1)
    threshold = confidence.float().quantile(0.5).item() + 1e-7
    settings = {"confidence": threshold, "temperature": temperature, "consistency_weight": 0.7}
    settings["consistency_over"] = over
    method = make_method("semidavil", **settings).double()
    method.teacher.load_state_dict(teacher.state_dict())
    losses = method.losses(batch, 0)

    box = part["cutmix"][0]
    strong = part["strong"][0].clone()
    for i, other in ((0, 1), (1, 0)):
        inside = box[i]
        strong[i, :, inside] = part["strong"][0][other][:, inside]
    mixed_labels = torch.where(box, labels[[1, 0]], labels)
    mixed_confidence = torch.where(box, confidence[[1, 0]], confidence)
    logits = method.student(strong, part["language"])
    per_pixel = nn.functional.cross_entropy(logits, mixed_labels, reduction="none")
    keep = mixed_confidence >= threshold
    assert 0 < keep.float().mean() < 1
    consistency = (per_pixel * keep).sum() / (keep.sum() if over == "confident" else keep.numel())
    source = batch["source"]
    supervised = nn.functional.cross_entropy(
        method.student(source["image"], source["language"]), source["label"]
    )
    assert losses["loss_con"].item() == pytest.approx(consistency.item(), rel=1e-5)
    assert losses["loss_sup"].item() == pytest.approx(supervised.item(), rel=1e-5)
    assert losses["confident"].item() == pytest.approx(keep.float().mean().item())
    expected = supervised + 0.7 * consistency
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)

    ours = torch.autograd.grad(losses["loss"], list(method.student.parameters()))
    theirs = torch.autograd.grad(expected, list(method.student.parameters()))
    for one, other_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other_gradient, rtol=1e-4, atol=1e-6)


def test_the_sources_share_weighs_its_loss_where_there_are_target_labels() -> None:
    method = make_method("supervised", source_share=0.2)
    batch = make_batch("source", "labelled")
    terms = {
        name: nn.functional.cross_entropy(
            method.student(part["image"], part["language"]), part["label"]
        ).item()
        for name, part in batch.items()
    }
    expected = 0.2 * terms["source"] + 0.8 * terms["labelled"]
    assert method.losses(batch, 0)["loss"].item() == pytest.approx(expected, rel=1e-6)
    for name, part in batch.items():  # alone, a stream is all of it
        assert method.losses({name: part}, 0)["loss"].item() == pytest.approx(terms[name], rel=1e-6)


def test_a_joint_supervised_loss_is_one_call_on_both_streams() -> None:
    """Mining is by rank over both: with h = 20% the stream that is harder fills the mined set."""
    method = make_method("supervised", supervised="joint", loss__name="dyce")
    batch = make_batch("source", "labelled")
    both = {name: torch.cat([part[name] for part in batch.values()]) for name in ("image", "label")}
    language = Language.joined([part["language"] for part in batch.values()])
    logits = method.student(both["image"], language)
    per_pixel = nn.functional.cross_entropy(logits, both["label"], reduction="none").flatten()
    hard = per_pixel.sort(descending=True).indices[: math.floor(0.2 * per_pixel.numel())]
    labels, expected = both["label"].flatten()[hard], 0.0
    for index in range(CLASSES):
        mine = labels == index
        if mine.any():
            expected += per_pixel[hard][mine].sum() / (len(hard) * mine.sum()) ** 0.5
    assert method.losses(batch, 0)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    apart = make_method("supervised", loss__name="dyce").losses(batch, 0)["loss"]
    assert apart.item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("loss", ["dyce", "dce", "ce"])
def test_a_matched_consistency_weight_keeps_the_ratio_of_both_gradients(loss: str) -> None:
    """|grad L_sup| / |weight grad L_CT| is cross-entropy's, whatever the supervised loss."""
    settings = {"consistency_weight": 0.7, "confidence": 0.0, "loss__name": loss}
    matched = make_method("semidavil", consistency_scale="matched", **settings)
    batch = make_batch("source", "labelled", "unlabelled")

    def norm(value: torch.Tensor, logits: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([g.norm() for g in torch.autograd.grad(value, logits)]).norm()

    logits, labels = [], []
    for part in (batch["source"], batch["labelled"]):
        logits.append(matched.student(part["image"], part["language"]).detach())
        labels.append(part["label"])
    leaves = [part.requires_grad_() for part in logits]
    ours = [matched.supervised_loss(x, y) for x, y in zip(leaves, labels, strict=True)]
    # Cross-entropy's gradient by hand: (p - y) / n in each stream, halved by their mean.
    theirs = [
        (x.softmax(1) - nn.functional.one_hot(y, CLASSES).movedim(-1, 1)) / (2 * y.numel())
        for x, y in zip(leaves, labels, strict=True)
    ]
    reference = torch.stack([part.norm() for part in theirs]).norm()
    ratio = (norm(sum(ours) / 2, leaves) / reference).item()
    losses = matched.losses(batch, 0)
    weight = (losses["loss"] - losses["loss_sup"]) / losses["loss_con"]
    assert weight.item() == pytest.approx(0.7 * ratio, rel=1e-4)
    assert (ratio == pytest.approx(1, rel=1e-4)) == (loss == "ce")
    fixed = make_method("semidavil", **settings).losses(batch, 0)
    assert fixed["loss_sup"].item() == losses["loss_sup"].item()


def test_without_unlabelled_images_semidavil_is_its_supervised_half() -> None:
    batch = make_batch("source", "labelled")
    method = make_method("semidavil", consistency_weight=0.0)
    seen = method.losses(batch, 0)
    expected = make_method("supervised").losses(batch, 0)
    assert set(seen) == {"loss", "loss_sup"}
    assert seen["loss"].item() == expected["loss"].item()
    config = method.config
    assert streams_of(config) == {"source", "labelled"}
    assert "unlabelled" in streams_of(config.replace({"training.consistency_weight": 0.1}))
    assert "unlabelled" in streams_of(config.replace({"training.method": "sdepth"}))


def test_consistency_changes_the_students_gradient_only_through_confident_pixels() -> None:
    batch = make_batch("source", "unlabelled")
    gradients = []
    for confidence in (0.0, 1.0):  # everything is confident, nothing is
        method = make_method("semidavil", confidence=confidence)
        method.losses(batch, 0)["loss"].backward()
        gradients.append(method.student.decoder.classify.weight.grad)
    supervised = make_method("supervised")
    supervised.losses({"source": batch["source"]}, 0)["loss"].backward()
    alone = supervised.student.decoder.classify.weight.grad
    assert torch.allclose(gradients[1], alone, atol=1e-7)
    assert not torch.allclose(gradients[0], alone, atol=1e-3)


def test_ema_agrees_with_its_closed_form() -> None:
    student, teacher = make_segmenter(0), make_segmenter(1)
    weights = []
    expected = None
    for step in range(6):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(0.1 * (step + 1))
        student.vision.calls += 1
        weights.append(student.decoder.classify.weight.detach().double().clone())
        ema_update(teacher, student, 0.75, step)
        alpha = min(1 - 1 / (step + 1), 0.75)
        expected = weights[-1] if step == 0 else alpha * expected + (1 - alpha) * weights[-1]
        actual = teacher.decoder.classify.weight.double()
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        if step < 4:  # until the decay binds, the teacher is the plain mean of all students
            mean = torch.stack(weights).mean(0)
            torch.testing.assert_close(actual, mean, rtol=1e-5, atol=1e-6)
        assert teacher.vision.calls == student.vision.calls


@pytest.mark.parametrize(
    ("name", "ema", "moved"),
    [("semidavil", 0.9, 0.1), ("sdepth", 0.5, 0.01)],  # S-Depth's is its paper's 0.99
)
def test_after_step_moves_the_teacher_by_the_methods_decay(
    name: str, ema: float, moved: float
) -> None:
    method = make_method(name, ema=ema)
    before = method.teacher.decoder.classify.weight.clone()
    with torch.no_grad():
        method.student.decoder.classify.weight.add_(1.0)
    method.after_step(1000)
    torch.testing.assert_close(method.teacher.decoder.classify.weight, before + moved)


def test_the_teacher_starts_as_the_student_and_shares_nothing_with_it() -> None:
    method = make_method("semidavil")
    ours, theirs = method.student.state_dict(), method.teacher.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in ours)
    assert isinstance(method, SemiDAViL)
    method.train()
    assert method.student.training
    assert not method.teacher.training


def test_paste_takes_the_next_image_inside_the_box() -> None:
    values = torch.arange(3.0).view(3, 1, 1).expand(3, 2, 2)
    box = torch.zeros(3, 2, 2, dtype=torch.bool)
    box[:, 0] = True
    assert paste(values, box)[:, 0].tolist() == [[1, 1], [2, 2], [0, 0]]
    assert paste(values, box)[:, 1].tolist() == [[0, 0], [1, 1], [2, 2]]
    images = values.unsqueeze(1).expand(3, 3, 2, 2)
    assert torch.equal(paste(images, box)[:, 2], paste(values, box))


@pytest.mark.parametrize("size", [(16, 24), (13, 9), (8, 31)])
def test_logits_have_the_images_size_whatever_it_is(size: tuple[int, int]) -> None:
    logits = make_segmenter()(torch.rand(2, 3, *size), encode(["a", "b"]))
    assert logits.shape == (2, CLASSES, *size)


def test_padding_to_whole_patches_leaves_the_rest_as_it_was() -> None:
    model = make_segmenter(fusion="none")
    images = torch.rand(1, 3, 16, 20)
    cut = model(images, encode(["a"]))
    padded = model(
        nn.functional.pad(images, (0, 4, 0, 0), mode="replicate"), encode(["a"])
    )  # fmt: skip
    torch.testing.assert_close(cut, padded[..., :20])


def test_parameter_groups_hold_every_trained_parameter_once() -> None:
    # S-Depth trains a head of its own beside the student.
    method = make_method("sdepth", lr=0.2, backbone_lr_factor=0.1, weight_decay=0.3)
    vision = method.student.vision
    vision.patch.bias.requires_grad_(False)
    rest, backbone = parameter_groups(method, method.rates())
    assert (rest["lr"], backbone["lr"]) == (0.2, pytest.approx(0.02))
    assert (rest["scale"], backbone["scale"]) == (1.0, 0.1)
    assert rest["weight_decay"] == backbone["weight_decay"] == 0.3
    assert [id(p) for p in backbone["params"]] == [id(vision.patch.weight)]
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    grouped = [id(p) for p in rest["params"] + backbone["params"]]
    assert sorted(grouped) == sorted(trained)
    assert {id(p) for p in method.depth_head.parameters()} < set(grouped)
    assert not {id(p) for p in method.teacher.parameters()} & set(grouped)
    assert len(parameter_groups(method, replace(method.rates(), backbone_factor=0.0))) == 1
    assert not any(p.requires_grad for p in vision.parameters())
    assert copy.deepcopy(method.student).vision.stride == STRIDE


def test_semivl_trains_at_its_authors_rates() -> None:
    """Cityscapes: 5e-5, a tenth of it for CLIP, ten times for the head; norms do not decay."""
    method = make_method("semivl")  # `training.lr` is 1e-4 and `weight_decay` 2e-4
    for name, parameter in method.student.vision.named_parameters():
        parameter.requires_grad_(name == "patch.weight")
    norms = {
        id(p)
        for m in method.modules()
        if isinstance(m, nn.LayerNorm | nn.GroupNorm)
        for p in m.parameters()
    }
    rates = {}
    for group in parameter_groups(method, method.rates()):
        for parameter in group["params"]:
            rates[id(parameter)] = (group["lr"], group["weight_decay"])
            # The schedule multiplies `lr` by the group's share.
            assert method.rates().lr * group["scale"] == pytest.approx(group["lr"])
    vision = method.student.vision
    assert rates[id(vision.patch.weight)] == (pytest.approx(5e-6), 0.01)
    head = [*method.student.fusion.parameters(), *method.student.decoder.parameters()]
    for parameter in head:
        expected = 0.0 if id(parameter) in norms else 0.01
        assert rates[id(parameter)] == (pytest.approx(5e-4), expected)
    others = make_method("semidavil").rates()
    assert (others.lr, others.backbone_factor, others.weight_decay) == (1e-4, 1.0, 2e-4)
