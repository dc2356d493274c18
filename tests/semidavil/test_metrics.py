import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix

from semidavil.metrics import Confusion, absent_classes, confusion_matrix, iou, summarise

CLASSES = ("road", "car", "person", "train")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), ignored=st.floats(0, 1))
def test_confusion_agrees_with_torchmetrics(seed: int, ignored: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(0, 4, (2, 8, 9), generator=generator)
    targets = torch.randint(0, 4, (2, 8, 9), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = 255
    ours = confusion_matrix(predictions, targets, 4)
    theirs = multiclass_confusion_matrix(predictions, targets, 4, ignore_index=255)
    assert torch.equal(ours, theirs)
    total = Confusion(4, torch.device("cpu"))
    for one, label in zip(predictions, targets, strict=True):
        total.add(one, label)
    assert np.array_equal(total.numpy(), ours.numpy())


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
