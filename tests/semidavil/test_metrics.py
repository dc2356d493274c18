from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix

from semidavil.evaluation.street import Evaluator
from semidavil.metrics import Evaluation, absent_classes, iou, summarise

CLASSES = ("road", "car", "person", "train")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), ignored=st.floats(0, 1), threshold=st.floats(0, 1))
def test_confusions_agree_with_torchmetrics(seed: int, ignored: float, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 4, 8, 9, generator=generator)
    targets = torch.randint(0, 4, (2, 8, 9), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = 255
    evaluator = Evaluator(4, threshold)
    for one, label, name in zip(logits, targets, "ab", strict=True):
        evaluator.add(one[None], label[None], [name])
    found = evaluator.result()
    expected = [
        multiclass_confusion_matrix(one.argmax(0)[None], label[None], 4, ignore_index=255)
        for one, label in zip(logits, targets, strict=True)
    ]
    assert np.array_equal(found.per_image, torch.stack(expected))
    # Pixels below the threshold are as good as ignored.
    kept = torch.where(logits.softmax(1).amax(1) >= threshold, targets, 255)
    confident = multiclass_confusion_matrix(logits.argmax(1), kept, 4, ignore_index=255)
    assert np.array_equal(found.confident, confident)
    both = Evaluator(4, threshold)
    both.add(logits, targets, "ab")
    assert np.array_equal(both.result().per_image, found.per_image)


def test_pseudo_labels_by_hand_and_on_disk(tmp_path: Path) -> None:
    per_image = np.array([[[3, 1], [0, 2]], [[1, 1], [1, 1]]])  # 10 pixels
    found = Evaluation(["a", "b"], per_image, np.array([[3, 0], [1, 1]]))
    assert found.pseudo_labels() == {"coverage": 50.0, "accuracy": 80.0}
    assert found.pseudo_labels(["a", "b"]) == {
        "coverage": 50.0, "accuracy": 80.0,
        "coverage/a": 80.0, "accuracy/a": 75.0, "coverage/b": 20.0, "accuracy/b": 100.0,
    }  # fmt: skip
    found.save(tmp_path / "evaluation.npz")
    with np.load(tmp_path / "evaluation.npz") as kept:
        assert kept["names"].tolist() == ["a", "b"]
        assert np.array_equal(kept["per_image"], per_image)
        assert np.array_equal(kept["confident"], found.confident)
    nothing = Evaluation(["a"], per_image[:1], np.zeros((2, 2), int))
    assert nothing.pseudo_labels() == {"coverage": 0.0}
    only_a = Evaluation(["a"], np.array([[[2, 0], [1, 0]]]), np.zeros((2, 2), int))
    assert only_a.pseudo_labels(["a", "b"]) == {"coverage": 0.0, "coverage/a": 0.0}


def test_iou_by_hand() -> None:
    # road: 3 right, 1 called car. car: 2 right. person: never there, predicted once for a road
    # pixel. train: neither there nor predicted.
    confusion = np.array([[3, 1, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert iou(confusion)[:3].tolist() == pytest.approx([3 / 5, 2 / 3, 0.0])
    assert np.isnan(iou(confusion)[3])
    summary = summarise(confusion, CLASSES, {"two": (0, 1), "none": (3,)})
    assert summary["miou"] == pytest.approx(100 * (3 / 5 + 2 / 3 + 0) / 3)
    assert summary["miou_two"] == pytest.approx(100 * (3 / 5 + 2 / 3) / 2)
    assert summary["pixel_accuracy"] == pytest.approx(100 * 5 / 7)
    assert summary["iou/person"] == 0
    assert "iou/train" not in summary
    assert "miou_none" not in summary
    assert absent_classes(confusion, CLASSES) == ["train"]


def test_nothing_to_evaluate_is_not_a_number() -> None:
    summary = summarise(np.zeros((4, 4), dtype=np.int64), CLASSES)
    assert np.isnan(summary["miou"])
    assert np.isnan(summary["pixel_accuracy"])
