"""What the released code would do, term by term in float64, and what is trivial about it."""

import math

import pytest
import torch
from small_method import CLASSES, double, make_batch, make_method, make_segmenter
from test_loading import make_batches
from test_rivals import same_gradients
from torch import Tensor

from semidavil.config import preset
from semidavil.experiments.street import parameter_groups
from semidavil.methods.semidavil_released import soft_consistency
from semidavil.models.readout import to_pixels
from semidavil.models.text import Language

TH = 0.4


def sentence(language: Language) -> Language:
    """Each caption's last real token alone."""
    rows = [tokens[n - 1 : n] for tokens, n in zip(language.tokens, language.lengths, strict=True)]
    return Language.of(rows)


def words() -> Language:
    generator = torch.Generator().manual_seed(1)
    return Language.of([torch.rand(n, 5, generator=generator).double() for n in (4, 2)])


def test_the_loss_term_by_term() -> None:
    settings = {"confidence": TH, "consistency_weight": 0.7, "loss__name": "dyce"}
    method = make_method("semidavil_released", **settings).double()
    method.teacher.load_state_dict(make_segmenter(seed=5).double().state_dict())
    batch = double(make_batch("source", "labelled", "unlabelled"))
    for part in batch.values():
        part["language"] = words()
    losses, part = method.losses(batch, 0), batch["unlabelled"]

    joined = [batch["source"], batch["labelled"]]
    logits = [method.student(one["image"], sentence(one["language"])) for one in joined]
    supervised = method.supervised_loss(torch.cat(logits), torch.cat([p["label"] for p in joined]))
    said = sentence(part["language"])
    theirs = method.teacher(part["image"], said).softmax(1)
    ours = method.student(part["image"], said).softmax(1)
    total, confident = torch.zeros((), dtype=torch.float64), 0
    for i in range(2):
        for y in range(16):
            for x in range(16):
                p, q = theirs[i, :, y, x], ours[i, :, y, x]
                if p.max() >= TH:
                    confident += 1
                    total = total + sum(p[c] * (p[c].log() - q[c].log()) for c in range(CLASSES))
    assert 0.05 < confident / 512 < 0.95
    expected = supervised + 0.7 * total / confident
    assert losses["confident"].item() == pytest.approx(confident / 512)
    assert losses["loss_con"].item() == pytest.approx((total / confident).item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    same_gradients(method, losses["loss"], expected)


def test_without_a_confident_pixel_there_is_no_consistency() -> None:
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    value, confidence = soft_consistency(logits, torch.zeros(2, CLASSES, 4, 4), 0.5)
    assert value.item() == 0
    assert confidence.unique().tolist() == [1 / CLASSES]
    value.backward()
    assert not logits.grad.any()


def test_language_is_one_sentence_and_says_nothing_of_places() -> None:
    method = make_method("semidavil_released").double()
    language = words()
    pooled = method.language({"language": language})
    assert pooled.lengths == (1, 1)
    assert pooled.mask.all()
    assert torch.equal(
        pooled.tokens[:, 0], torch.stack([language.tokens[0, 3], language.tokens[1, 1]])
    )
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    vision = to_pixels(method.student.vision(images))

    def spread(said: Language) -> float:
        """How much what DLG adds to a pixel differs from pixel to pixel."""
        attended, _, multimodal = method.student.fusion.attend(vision, said.tokens, said.mask)
        return max(part.std(1).max().item() for part in (attended, multimodal))

    assert spread(pooled) < 1e-12
    assert spread(language) > 1e-4


def test_the_teacher_follows_with_the_plain_decay_and_the_student_is_reported() -> None:
    method = make_method("semidavil_released", ema=0.9)
    assert list(method.networks()) == ["student", "teacher"]
    weight: Tensor = method.teacher.decoder.classify.weight
    expected = weight.clone().double()
    for step in range(3):
        with torch.no_grad():
            method.student.decoder.classify.weight.add_(math.pi)
        method.after_step(step)
        expected = 0.9 * expected + 0.1 * method.student.decoder.classify.weight.double()
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_encoder_is_frozen() -> None:
    method = make_method("semidavil_released", lr=0.2)
    (group,) = parameter_groups(method, method.rates())
    assert group["lr"] == 0.2
    trained = {id(p) for p in group["params"]}
    head = [*method.student.fusion.parameters(), *method.student.decoder.parameters()]
    assert trained == {id(p) for p in head}


def test_its_batches_have_no_strong_views(tiny_toy: dict[str, str]) -> None:
    config = preset("toy", {"data.store": "off", "data.budget": 5, **tiny_toy})
    batch = make_batches(config, views=0)[0]
    assert set(batch["unlabelled"]) == {"image", "language"}
    other = make_batches(config, views=1)[0]
    assert torch.equal(batch["unlabelled"]["image"], other["unlabelled"]["image"])
