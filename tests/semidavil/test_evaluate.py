"""Sliding windows and confusion matrices against direct computations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semidavil.data.loaders import collate
from semidavil.data.windows import sliding_windows
from semidavil.evaluation.street import evaluate, sliding_window
from semidavil.models.text import Language


class Pixels(nn.Module):
    """Logits that depend on each pixel alone, so windows must not change them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []
        self.counts: list[int] = []

    def forward(self, images: Tensor, language: Language) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        self.counts.append(len(images))
        assert len(language) == len(images)
        return torch.cat([images, 1 - images], dim=1)


def encode(captions: list[str]) -> Language:
    count = len(captions)
    return Language.of(list(torch.zeros(count, 1, 2)))


@pytest.mark.parametrize("window", [(8, 8), (16, 5), (20, 30), (7, 30)])
def test_windows_change_nothing_for_a_pixelwise_network(window: tuple[int, int]) -> None:
    images, network = torch.rand(2, 3, 16, 30), Pixels()
    logits = sliding_window(network, images, [encode(["a", "b"])], window)
    torch.testing.assert_close(logits, torch.cat([images, 1 - images], dim=1))
    limit = (min(window[0], 16), min(window[1], 30))
    assert set(network.sizes) == {limit}


def test_no_forward_pass_has_more_windows_than_it_may() -> None:
    images, network = torch.rand(2, 3, 16, 30), Pixels()
    language = encode(["a", "b"])
    windows = len(sliding_windows((16, 30), (8, 8)).boxes)
    whole = sliding_window(network, images, [language], (8, 8), batch_size=100)
    assert network.counts == [2 * windows]
    few = sliding_window(network, images, [language], (8, 8), batch_size=4)
    assert network.counts[1:] == [4] * (windows // 2) + [2] * (windows % 2)
    assert torch.equal(whole, few)


def test_confusion_is_counted_at_the_labels_own_sizes() -> None:
    items = []
    for index in range(3):
        label = torch.full((4 + index, 6), index, dtype=torch.uint8)
        label[0] = 255
        image = torch.zeros(3, 4, 6, dtype=torch.uint8)
        image[index] = 255
        items.append({"image": image, "label": label, "captions": ("x",), "name": str(index)})

    found = evaluate(
        {"net": Pixels()}, [collate(items[:2]), collate(items[2:])], encode, 6, (4, 6),
        torch.device("cpu"), batch_size=2,
        kept={"0", "2"},
    )  # fmt: skip
    expected = np.zeros((6, 6), int)
    for index in range(3):  # the brightest channel is the class; the complement ties below it
        expected[index, index] = (3 + index) * 6
    assert np.array_equal(found["net"].confusion, expected)
    assert found["net"].names == ["0", "1", "2"]
    assert [int(image.sum()) for image in found["net"].per_image] == [18, 24, 30]
    assert {name: labels.shape for name, labels in found["net"].labels.items()} == {
        "0": (4, 6), "2": (6, 6),
    }  # fmt: skip
    assert (found["net"].labels["2"] == 2).all()
    assert found["net"].labels["2"].dtype == np.uint8
