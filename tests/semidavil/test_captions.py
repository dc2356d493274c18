"""Captions: what is said, and what is kept on disk."""

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from captioning import captions_of
from open_clip.transformer import TextTransformer, VisionTransformer
from PIL import Image
from png_files import write_images
from torch import Tensor

from semidavil.data.files import DataError, append_rows, hash_files, read_rows
from semidavil.language.captioners import CaptionError
from semidavil.language.mirror import flip_caption
from semidavil.language.positions import Positions
from semidavil.models.clip_vision import ClipViT
from semidavil.models.text import TextEncoder
from semidavil.models.vlm import VLM

CLASSES = ("road", "sky", "car", "building")


class Words:
    """A tokenizer of open_clip's kind: one id per word, 0 pads, the last one ends."""

    eot_token_id = 999

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        ids = torch.zeros(len(texts), context_length or self.length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = text.replace(",", " ,").split()
            tokens = [998, *(sum(map(ord, word)) % 900 + 1 for word in words)][: len(row) - 1]
            row[: len(tokens) + 1] = torch.tensor([*tokens, self.eot_token_id])
        return ids


def tiny_vlm(max_tokens: int = 40, seed: int = 0) -> VLM:
    torch.manual_seed(seed)
    vision = VisionTransformer(
        image_size=24, patch_size=8, width=16, layers=1, heads=2, mlp_ratio=2.0, output_dim=12
    )
    text = TextTransformer(
        context_length=max_tokens, vocab_size=1000, width=16, heads=2, layers=1, output_dim=12
    )
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    towers = ClipViT(vision, mean, std).eval(), TextEncoder(text, Words(max_tokens))
    return VLM(*towers, mean, std, "tiny")


class Seen(ClipViT):
    """A VLM that sees perfectly: a patch's red, in steps of 40, is the index of its class."""

    def __init__(self, text: Tensor) -> None:
        vlm = tiny_vlm()
        super().__init__(vlm.vision.tower, vlm.mean, vlm.std)
        self.text = text

    def embed(self, images: Tensor, dense: str = "maskclip") -> Tensor:
        classes = (images[:, 0, ::8, ::8] * 255 / 40).round().long()  # red 0, 40, 80, 120
        return self.text[classes].permute(0, 3, 1, 2)


def seeing(classes: Sequence[str] = CLASSES, max_tokens: int = 40) -> VLM:
    vlm = tiny_vlm(max_tokens)
    vlm.vision = Seen(Positions(vlm, classes).text)
    return vlm


def describe(labels: Sequence[Sequence[int]], vlm: VLM | None = None) -> str:
    """The caption of an image with these classes in its patches."""
    vlm = vlm or seeing()
    pixels = np.kron(np.array(labels), np.ones((8, 8))) * 40
    image = Image.fromarray(np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8))
    captioner = Positions(vlm, CLASSES, size=pixels.shape)
    return captioner([image])[0]


ROAD, SKY, CAR, BUILDING = range(4)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            [[SKY] * 6] * 2 + [[BUILDING] * 2 + [ROAD] * 2 + [BUILDING] * 2] + [[ROAD] * 6] * 3,
            "road at the bottom, sky at the top, building on the left and right",
        ),
        (
            [[ROAD] * 6, [ROAD, ROAD, CAR, CAR, ROAD, ROAD], [ROAD] * 6],
            "road in the centre, car in the centre",
        ),
        ([[SKY] * 6] * 3 + [[ROAD] * 6], "sky at the top, road at the bottom"),
        ([[CAR] + [ROAD] * 5] * 3, "road in the centre, car on the left"),
        ([[ROAD] * 5 + [CAR]] * 3, "road in the centre, car on the right"),
        ([[ROAD] * 3 + [SKY] * 3] * 2, "road on the left, sky on the right"),
    ],
)  # fmt: skip
def test_captions_say_what_is_where(labels: list[list[int]], expected: str) -> None:
    assert describe(labels) == f"a street scene with {expected}"


def test_a_class_with_a_tiny_share_is_left_out() -> None:
    labels = np.full((10, 12), ROAD)
    labels[0, 0] = CAR  # 0.8%
    assert "car" not in describe(labels.tolist())
    labels[0, 1] = CAR
    assert describe(labels.tolist()).endswith("car on the left")


def test_a_mirrored_image_gets_the_flipped_caption() -> None:
    labels = [[SKY] * 6, [CAR, ROAD, ROAD, ROAD, ROAD, ROAD], [ROAD] * 6]
    mirrored = [row[::-1] for row in labels]
    assert describe(mirrored) == flip_caption(describe(labels)) != describe(labels)


def test_captions_fit_the_context_and_lose_the_smallest_classes_first() -> None:
    labels = [[SKY] * 6] * 2 + [[CAR] + [ROAD] * 5] + [[ROAD] * 6] * 3
    assert describe(labels).endswith("road at the bottom, sky at the top, car on the left")
    # start, four words, "road at the bottom", comma, "sky at the top", end
    short = seeing(max_tokens=15)
    assert describe(labels, short) == "a street scene with road at the bottom, sky at the top"
    assert describe(labels, seeing(max_tokens=14)) == "a street scene with road at the bottom"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the captioner was given."""
    calls: list[int] = []
    describe = Positions.__call__

    def spy(self: Positions, images: Sequence[Image.Image]) -> list[str]:
        calls.append(len(images))
        return describe(self, images)

    monkeypatch.setattr(Positions, "__call__", spy)
    return calls


def test_a_second_run_computes_nothing(tmp_path: Path, counted: list[int]) -> None:
    vlm, paths = tiny_vlm(), write_images(tmp_path / "images", 7)
    first = captions_of(paths, "positions", vlm, CLASSES, tmp_path / "cache", batch_size=3)
    assert counted == [3, 3, 1]
    assert list(first) == paths
    assert all(text.startswith("a street scene with ") for text in first.values())
    again = captions_of(paths, "positions", vlm, CLASSES, tmp_path / "cache")
    assert again == first
    assert counted == [3, 3, 1]


def test_captions_follow_the_content_of_an_image_not_its_name(
    tmp_path: Path, counted: list[int]
) -> None:
    vlm, (path, other) = tiny_vlm(), write_images(tmp_path / "images", 2)
    cache = tmp_path / "cache"
    first = captions_of([path], "positions", vlm, CLASSES, cache)
    moved = path.rename(tmp_path / "moved.png")
    twin = tmp_path / "twin.png"
    twin.write_bytes(moved.read_bytes())
    both = captions_of([moved, twin], "positions", vlm, CLASSES, cache)
    assert both == {moved: first[path], twin: first[path]}
    assert counted == [1]
    moved.write_bytes(other.read_bytes())  # same name, other content
    captions_of([moved], "positions", vlm, CLASSES, cache)
    assert counted == [1, 1]
    captions_of([moved, other, other], "positions", vlm, CLASSES, cache)
    assert counted == [1, 1]


@pytest.mark.parametrize("change", ["weights", "classes", "size", "version"])
def test_whatever_determines_a_caption_is_part_of_its_key(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    vlm, paths = tiny_vlm(), write_images(tmp_path / "images", 2)
    cache, classes, size = tmp_path / "cache", CLASSES, (24, 48)
    captions_of(paths, "positions", vlm, classes, cache, size=size)
    if change == "weights":
        vlm = tiny_vlm(seed=1)
    elif change == "classes":
        classes = CLASSES[:3]
    elif change == "size":
        size = (24, 24)
    else:
        monkeypatch.setattr(Positions, "VERSION", Positions.VERSION + 1)
    captions_of(paths, "positions", vlm, classes, cache, size=size)
    assert counted == [2, 2]


def test_an_interrupted_run_keeps_what_it_computed(tmp_path: Path, counted: list[int]) -> None:
    vlm, paths = tiny_vlm(), write_images(tmp_path / "images", 5)
    whole = paths[4].read_bytes()
    paths[4].write_bytes(whole[: len(whole) // 2])
    cache = tmp_path / "cache"
    with pytest.raises(
        CaptionError, match=r"0004\.png cannot be read: the PNG is cut short; replace it"
    ):
        captions_of(paths, "positions", vlm, CLASSES, cache, batch_size=2)
    paths[4].write_bytes(whole)
    (store,) = cache.glob("positions-*.jsonl")
    with store.open("ab") as file:
        file.write(b'{"image": "torn off by a cra')
    done = captions_of(paths, "positions", vlm, CLASSES, cache, batch_size=2)
    assert counted == [2, 2, 1]
    assert captions_of(paths, "positions", vlm, CLASSES, cache) == done
    assert counted == [2, 2, 1]


def _append(file: Path, who: int) -> None:
    for index in range(200):
        append_rows(
            file, [{"image": f"{who}-{index}-{part}", "caption": "x" * 90} for part in "ab"]
        )


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(tmp_path / "rows", who)) for who in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = list(read_rows(tmp_path / "rows"))
    assert len({row["image"] for row in rows}) == 800
    assert all(row["caption"] == "x" * 90 for row in rows)


def test_hashes_of_a_data_set_are_remembered_in_few_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / str(index) for index in range(2000)]
    for index, path in enumerate(paths):
        path.write_bytes(os.urandom(64) + bytes(12_000) + str(index % 1000).encode())
    writes = Mock(wraps=append_rows)
    monkeypatch.setattr("semidavil.data.files.append_rows", writes)
    hashes = hash_files(paths, tmp_path / "memo.jsonl")
    assert [len(call.args[1]) for call in writes.call_args_list] == [512, 512, 512, 464]
    assert len(set(hashes.values())) == 2000
    monkeypatch.setattr("semidavil.data.files._hash_file", None)  # nothing left to read
    assert hash_files(paths, tmp_path / "memo.jsonl") == hashes


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file"):
        captions_of([tmp_path / "gone.png"], "positions", tiny_vlm(), CLASSES, tmp_path)


def test_images_of_any_size_and_mode_in_one_batch(tmp_path: Path) -> None:
    Image.new("L", (70, 31), 90).save(tmp_path / "grey.png")
    Image.new("RGBA", (300, 200), (20, 30, 40, 50)).save(tmp_path / "alpha.png")
    Image.new("P", (9, 9)).save(tmp_path / "palette.png")
    paths = sorted(tmp_path.glob("*.png"))
    texts = captions_of(paths, "positions", tiny_vlm(), CLASSES, tmp_path / "cache")
    assert len(texts) == 3
    # The default is the size that the VLM was trained at, twice as wide: 24x48.
    assert Positions(tiny_vlm(), CLASSES).size == (24, 48)
    assert Positions(tiny_vlm(), CLASSES, size=(30, 50)).size == (32, 48)


def test_captioning_does_not_change_the_vlms_mode(tmp_path: Path) -> None:
    vlm, paths = tiny_vlm(), write_images(tmp_path, 1)
    vlm.vision.train()
    captions_of(paths, "positions", vlm, CLASSES, tmp_path / "cache")
    assert vlm.vision.training


def test_constant_captioners_read_no_image(tmp_path: Path) -> None:
    nowhere = [tmp_path / "a.png", tmp_path / "b.png"]
    assert captions_of(nowhere, "none", None, CLASSES, tmp_path) == dict.fromkeys(nowhere, "")
    named = captions_of(nowhere, "class_names", None, CLASSES, tmp_path)
    assert named == dict.fromkeys(nowhere, "road, sky, car, building")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["position", "blip", "positions:x", "", "llava:x"])
def test_unknown_captioners_are_explained(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaptionError, match=r"choose from positions, class_names, none, blip:NAME"):
        captions_of([], name, tiny_vlm(), CLASSES, tmp_path)


def test_positions_without_a_vlm_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match="through a VLM"):
        captions_of([], "positions", None, CLASSES, tmp_path)
