"""Training steps: what each term teaches, and whom."""

import copy

import pytest
import torch
from small_method import (
    CLASSES,
    STRIDE,
    encode,
    encode64,
    make_batch,
    make_method,
    make_segmenter,
)
from torch import nn

from semidavil.experiments.street import parameter_groups
from semidavil.methods.base import paste
from semidavil.methods.ema import ema_update
from semidavil.methods.semidavil import SemiDAViL
from semidavil.names import METHODS


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


def test_supervised_loss_averages_the_streams() -> None:
    method = make_method("supervised")
    batch = make_batch("source", "labelled")
    expected = 0.0
    for part in batch.values():
        logits = method.student(part["image"], encode(part["caption"]))
        expected += 0.5 * nn.functional.cross_entropy(logits, part["label"]).item()
    assert method.losses(batch, 0)["loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_semidavil_total_loss_term_by_term(temperature: float) -> None:
    teacher, batch = make_segmenter(seed=5).double(), make_batch("source", "unlabelled")
    for stream in batch.values():  # float64, so that no pixel is on the threshold by rounding
        stream.update({n: v.double() for n, v in stream.items() if n in ("image", "strong")})
    part = batch["unlabelled"]
    logits = teacher(part["image"], encode64(part["caption"])) / temperature
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    confidence, labels = probabilities.max(1)
    threshold = confidence.float().quantile(0.5).item() + 1e-7
    settings = {"confidence": threshold, "temperature": temperature, "consistency_weight": 0.7}
    method = make_method("semidavil", **settings).double()
    method.encode = encode64
    method.teacher.load_state_dict(teacher.state_dict())
    losses = method.losses(batch, 0)

    box = part["cutmix"][0]
    strong = part["strong"][0].clone()
    for i, other in ((0, 1), (1, 0)):
        inside = box[i]
        strong[i, :, inside] = part["strong"][0][other][:, inside]
    mixed_labels = torch.where(box, labels[[1, 0]], labels)
    mixed_confidence = torch.where(box, confidence[[1, 0]], confidence)
    logits = method.student(strong, encode64(part["caption"]))
    per_pixel = nn.functional.cross_entropy(logits, mixed_labels, reduction="none")
    valid = torch.where(box, part["valid"][[1, 0]], part["valid"])
    keep = (mixed_confidence >= threshold) & valid
    assert 0 < keep.float().mean() < 1
    consistency = (per_pixel * keep).sum() / valid.sum()
    source = batch["source"]
    supervised = nn.functional.cross_entropy(
        method.student(source["image"], encode64(source["caption"])), source["label"]
    )
    assert losses["loss_con"].item() == pytest.approx(consistency.item(), rel=1e-5)
    assert losses["loss_sup"].item() == pytest.approx(supervised.item(), rel=1e-5)
    assert losses["confident"].item() == pytest.approx((keep.sum() / valid.sum()).item())
    expected = supervised + 0.7 * consistency
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)

    ours = torch.autograd.grad(losses["loss"], list(method.student.parameters()))
    theirs = torch.autograd.grad(expected, list(method.student.parameters()))
    for one, other_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other_gradient, rtol=1e-4, atol=1e-6)


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


def test_after_step_moves_the_teacher_by_the_configured_decay() -> None:
    method = make_method("semidavil", ema=0.9)
    before = method.teacher.decoder.classify.weight.clone()
    with torch.no_grad():
        method.student.decoder.classify.weight.add_(1.0)
    method.after_step(1000)
    torch.testing.assert_close(method.teacher.decoder.classify.weight, before + 0.1)


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
    method = make_method("sdepth")  # it trains a head of its own beside the student
    vision = method.student.vision
    vision.patch.bias.requires_grad_(False)
    rest, backbone = parameter_groups(method, vision, lr=0.2, backbone_factor=0.1)
    assert (rest["lr"], backbone["lr"]) == (0.2, pytest.approx(0.02))
    assert [id(p) for p in backbone["params"]] == [id(vision.patch.weight)]
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    grouped = [id(p) for p in rest["params"] + backbone["params"]]
    assert sorted(grouped) == sorted(trained)
    assert {id(p) for p in method.depth_head.parameters()} < set(grouped)
    assert not {id(p) for p in method.teacher.parameters()} & set(grouped)
    assert len(parameter_groups(method, vision, 0.2, 0.0)) == 1
    assert not any(p.requires_grad for p in vision.parameters())
    assert copy.deepcopy(method.student).vision.stride == STRIDE
