"""Splits, views, batches and validation images."""

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from semidavil.benchmarks import IGNORE_INDEX
from semidavil.config import Config, preset
from semidavil.data import decoded
from semidavil.data.augment import StrongViews
from semidavil.data.files import DataError
from semidavil.data.loading import EvalSet, TrainBatches
from semidavil.data.readers import Sample
from semidavil.data.splits import split_target
from semidavil.data.streams import image_paths, train_samples
from semidavil.data.transforms import Weak, cut, cutmix_box, weak_view
from semidavil.language.captions import Caption

ALL = ("source", "labelled", "unlabelled")


@pytest.fixture
def config(tiny_toy: dict[str, str]) -> Config:
    # Decoded at every look; what is kept on disk is the matter of test_store.py.
    decoded = {"data.store": "off", "data.budget": 5, "training.batch_size": 3}
    return preset("toy", {**decoded, **tiny_toy})


def make_batches(config: Config, streams: tuple[str, ...] = ALL, views: int = 2) -> TrainBatches:
    captions = {path: Caption((f"{path.stem} on the left",)) for path in image_paths(config)}
    return TrainBatches(config, captions, list, streams, views)


def equal(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, StrongViews) and isinstance(b, StrongViews):
        return equal(vars(a), vars(b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


samples = [Sample(Path(f"{i}.png"), Path(f"{i}_label.png"), str(i)) for i in range(60)]


@settings(max_examples=60, deadline=None)
@given(small=st.integers(0, 60), large=st.integers(0, 60), seed=st.integers(0, 2**31 - 1))
def test_budgets_are_nested_disjoint_and_complete(small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    labelled, unlabelled = split_target(samples, small, seed)
    more, _ = split_target(samples, large, seed)
    assert len(labelled) == small
    assert set(labelled) <= set(more)
    if small < len(samples):
        assert not set(labelled) & set(unlabelled)
    assert set(labelled) | set(unlabelled) == set(samples)
    assert (labelled, unlabelled) == split_target(samples, small, seed)


def test_seeds_draw_different_labelled_images() -> None:
    assert split_target(samples, 20, 0)[0] != split_target(samples, 20, 1)[0]


def test_a_budget_larger_than_the_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"61 labelled images is larger .* 60"):
        split_target(samples, 61, 0)


def test_a_batch_has_what_it_promises(config: Config) -> None:
    batch = make_batches(config)[0]
    assert set(batch) == set(ALL)
    for name in ("source", "labelled"):
        part = batch[name]
        assert part["image"].shape == (3, 3, 32, 32)
        assert part["image"].dtype == torch.uint8
        assert part["label"].shape == (3, 32, 32)
        assert part["label"].dtype == torch.uint8
        assert set(part["label"].unique().tolist()) <= {*range(19), IGNORE_INDEX}
        assert len(part["language"]) == 3
    part = batch["unlabelled"]
    assert set(part) == {"image", "strong", "cutmix", "language"}  # and no label
    assert part["image"].shape == (3, 3, 32, 32)
    assert part["strong"].hue.shape == (2, 3)
    assert part["cutmix"].shape == (2, 3, 4)


def test_a_batch_depends_on_seed_and_step_alone(config: Config) -> None:
    batches = make_batches(config)
    expected = [batches[step] for step in range(5)]
    again = make_batches(config)
    assert all(equal(again[step], expected[step]) for step in (4, 0, 2, 2))
    other_model = make_batches(config.replace({"model.fusion": "vlga", "loss.name": "ce"}))
    assert equal(other_model[3], expected[3])
    assert not equal(make_batches(config.replace({"seed": 1}))[3], expected[3])
    assert not equal(expected[0], expected[1])


def test_streams_do_not_depend_on_each_other(config: Config) -> None:
    whole, alone = make_batches(config)[2], make_batches(config, ("source",))[2]
    assert set(alone) == {"source"}
    assert equal(alone["source"], whole["source"])


@pytest.mark.slow
def test_workers_change_nothing(config: Config) -> None:
    expected = [make_batches(config)[step] for step in range(4)]
    for workers in (0, 2):
        loader = DataLoader(
            make_batches(config), batch_size=None, sampler=range(4), num_workers=workers
        )
        assert all(equal(a, b) for a, b in zip(loader, expected, strict=True))


def test_global_random_states_are_left_alone(config: Config) -> None:
    batches = make_batches(config)

    def states() -> bytes:
        return pickle.dumps(
            (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        )

    before = states()
    batches[0]
    assert states() == before


def test_the_random_state_of_a_gpu_is_left_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make_batches(config)
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda _: pytest.fail("a GPU was seeded"))
    batches[0]


def test_memory_for_decoded_images_is_bounded(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_batches(config)[3]
    monkeypatch.setattr(decoded, "_memories", {})
    limit = 2 * 64 * 128 * 4  # of a data set: two images of three colours with their labels
    monkeypatch.setattr(decoded, "TRAIN_BYTES", limit)
    batches = make_batches(config)
    for step in range(4):
        last = batches[step]
    for images in batches.images.values():
        kept = sum(tensor.nbytes for tensor in images.memory.kept.values())
        assert limit / 2 < kept <= limit
    shared = decoded.open_images(config, "gta5", workers=4)
    assert shared.memory.limit == limit // 4
    assert equal(last, expected)


def test_runs_of_one_process_share_what_they_have_decoded(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "_memories", {})
    first, again = make_batches(config), make_batches(config.replace({"training.lr": 0.5}))
    expected = first[0]
    for images in again.images.values():
        monkeypatch.setattr(images.reader, "read_image", None)  # it need not
        monkeypatch.setattr(images.reader, "read_label", None)
    assert equal(again[0], expected)
    memory = first.images["source"].memory
    smaller = make_batches(config.replace({"data.source_size": (128, 256)}))
    assert smaller.images["source"].memory is not memory
    assert equal(first[0], expected), "who has a memory keeps it"


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    memory, file = decoded.Memory(100), tmp_path / "image.png"
    made = iter(torch.arange(9))

    def recall() -> int:
        return int(memory.recall("image", file, lambda: next(made)))

    assert [recall(), recall()] == [0, 1], "it is not there: the reader says so"
    file.write_text("a")
    assert [recall(), recall()] == [2, 2]
    file.write_text("ab")
    assert [recall(), recall()] == [3, 3]
    os.utime(file, ns=(1, 1))
    assert [recall(), recall()] == [4, 4]


def test_memories_of_other_data_sets_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "_memories", {})
    limit = decoded.TRAIN_BYTES
    gta5, target = (decoded.shared_memory(limit, name) for name in ("gta5", "target"))
    scored = decoded.shared_memory(decoded.EVAL_BYTES, "target")
    assert decoded.shared_memory(limit, "target") is target
    assert scored is not target
    decoded.shared_memory(limit, "synthia")
    assert decoded.shared_memory(limit, "gta5") is not gta5


def test_labels_of_unlabelled_images_are_never_read(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_batches(config)[1]["unlabelled"]
    monkeypatch.setattr(decoded, "_memories", {})
    batches = make_batches(config)
    read, unlabelled = [], {s.label for s in batches.samples["unlabelled"]}
    for reader in {images.reader for images in batches.images.values()}:
        original = reader.read_label
        monkeypatch.setattr(
            reader, "read_label", lambda s, f=original: (read.append(s.label), f(s))[1]
        )
    for step in range(4):
        batches[step]
    assert read
    assert not unlabelled & set(read)
    assert equal(batches[1]["unlabelled"], expected)


def test_every_image_is_drawn_once_before_any_is_drawn_twice(config: Config) -> None:
    batches = make_batches(config.replace({"training.batch_size": 2}))
    drawn = [s.image for step in range(6) for s in batches._draw("source", step)]
    assert set(drawn[:6]) == {s.image for s in train_samples(config)["source"]}
    assert set(drawn[6:]) == set(drawn[:6])
    assert drawn[6:] != drawn[:6]


def test_a_flipped_image_has_a_flipped_caption(config: Config) -> None:
    batches = make_batches(config)
    sides = {text.split()[-1] for step in range(6) for text in batches[step]["source"]["language"]}
    assert sides == {"left", "right"}


def test_budgets_at_the_ends(config: Config) -> None:
    assert set(train_samples(config.replace({"data.budget": 0}))) == {"source", "unlabelled"}
    everything = train_samples(config.replace({"data.budget": 12}))
    assert everything["labelled"] == everything["unlabelled"]
    with pytest.raises(DataError, match="larger than"):
        train_samples(config.replace({"data.budget": 13}))


def test_a_benchmark_without_a_source(config: Config) -> None:
    ssl = config.replace({"data.benchmark": "cityscapes-cityscapes"})
    assert set(make_batches(ssl)[0]) == {"labelled", "unlabelled"}
    assert len(image_paths(ssl)) == 16


def test_the_evaluation_set_keeps_the_labels_size(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    label = np.resize(np.arange(12, dtype=np.uint8), (30, 44))
    root = write_dataset("camvid", lambda _: label, size=(30, 44))
    write_dataset("idda", lambda _: np.full((30, 44), 7, np.uint8), size=(30, 44))
    config = preset(
        "small",
        {
            "data.benchmark": "idda-camvid",
            "data.budget": 2,
            "data.source_size": "16x24",
            "data.target_size": "16x24",
            "data.crop": "16x16",
            "runtime.data_root": str(root),
            "runtime.cache_dir": str(tmp_path / "cache"),
        },
    )
    item = EvalSet(config, dict.fromkeys(image_paths(config), Caption(("x",))))[0]
    assert item["image"].shape == (3, 16, 24)
    assert item["label"].shape == (30, 44)
    expected = torch.from_numpy(np.where(label == 11, 255, label).astype(np.int64))
    assert torch.equal(item["label"], expected)


def seen(
    image: torch.Tensor,
    label: torch.Tensor | None,
    crop: tuple[int, int],
    disparity: torch.Tensor | None = None,
) -> Weak:
    """A weak view of a whole image (3, H, W)."""
    height, width = image.shape[-2:]
    view = weak_view((height, width), crop)
    maps = [part if part is None else part[view.box.slices] for part in (label, disparity)]
    return cut(view, crop, image[..., *view.box.slices], *maps)


def column_of(label: torch.Tensor) -> torch.Tensor:
    """Where in the source image each output column was taken from, by a label that holds it."""
    return label[label.shape[0] // 2].double()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(48, 90), st.integers(48, 110)),
    crop=st.integers(24, 48),
)
def test_image_label_and_disparity_are_sampled_on_one_grid(
    seed: int, size: tuple[int, int], crop: int
) -> None:
    """On a ramp, values say where a pixel was taken from: the three must agree without a lag."""
    torch.manual_seed(seed)
    for axis in (0, 1):
        places = torch.arange(size[axis])
        ramp = (places if axis else places[:, None]).expand(size)
        image = (2 * ramp).to(torch.uint8).expand(3, -1, -1).contiguous()
        view = seen(image, ramp.to(torch.uint8), (crop, crop), ramp.float())
        shown, label = view.image[0].double() / 2, view.label.double()
        assert torch.equal(view.disparity.double(), label)
        # The label is the pixel nearest to where the image was sampled: half a pixel at most, and a
        # quarter for the image's rounding. The borders repeat the last pixel.
        assert (shown - label)[1:-1, 1:-1].abs().max() <= 0.76


def test_labels_do_not_lag_their_images() -> None:
    """The mean over many views, mirrored or not; it was half an output pixel once."""
    lags = []
    ramp = torch.arange(110).expand(90, 110)
    for seed in range(60):
        torch.manual_seed(seed)
        view = seen(
            (2 * ramp).to(torch.uint8).expand(3, -1, -1).contiguous(),
            ramp.to(torch.uint8),
            (64, 64),
        )
        lags.append((view.image[0].double() / 2 - view.label)[1:-1, 1:-1].mean())
    assert torch.stack(lags).mean().abs() < 0.05


@pytest.mark.parametrize("seed", range(8))
def test_the_label_of_a_thin_pole_lies_on_the_pole(seed: int) -> None:
    """Poles of two pixels, at no scale: every labelled pixel is a pole's, and every pole is labelled."""
    torch.manual_seed(seed)
    height, width, crop = 64, 128, (64, 64)
    label = (torch.arange(width) % 16 < 2).to(torch.uint8).expand(height, width).contiguous()
    view = seen((255 * label).expand(3, -1, -1).contiguous(), label, crop)
    shown, labelled = view.image[0] >= 128, view.label == 1
    overlap = (shown & labelled).sum() / (shown | labelled).sum()
    assert overlap == 1.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(32, 90),
    width=st.integers(32, 120),
)
def test_no_view_is_padded(seed: int, height: int, width: int) -> None:
    """Source and target by one rule: a scale at which the crop would not fit is never drawn."""
    torch.manual_seed(seed)
    view = seen(
        torch.full((3, height, width), 200, dtype=torch.uint8),
        torch.full((height, width), 3, dtype=torch.uint8),
        (32, 32),
    )
    assert view.image.shape == (3, 32, 32)
    assert (view.image == 200).all()
    assert (view.label == 3).all()


def test_scales_are_those_of_both_domains_where_the_crop_fits() -> None:
    """Source pixels per output pixel over many views: 1/1.5 to 1/0.75; 1/1.5 to 1 without room."""
    for width, smallest in ((96, 0.75), (64, 1.0)):
        torch.manual_seed(0)
        image = torch.zeros(3, width, width, dtype=torch.uint8)
        ramp = torch.arange(width, dtype=torch.uint8).expand(width, width)
        spans = []
        for _ in range(300):
            columns = column_of(seen(image, ramp, (64, 64)).label)
            spans.append(float(columns.max() - columns.min() + 1) / 64)
        assert min(spans) == pytest.approx(1 / 1.5, abs=0.03)
        assert max(spans) == pytest.approx(1 / smallest, abs=0.03)


def test_both_axes_are_scaled_alike() -> None:
    """Where the crop is as high as the image, a smaller scale would show it stretched."""
    columns = torch.arange(128, dtype=torch.uint8).expand(64, 128).contiguous()
    rows = torch.arange(64, dtype=torch.uint8)[:, None].expand(64, 128).contiguous()
    for seed in range(40):
        spans = []
        for places in (rows, columns):
            torch.manual_seed(seed)
            view = seen(places.expand(3, -1, -1).contiguous(), places, (64, 64))
            spans.append(int(view.label.max()) - int(view.label.min()))
        assert abs(spans[0] - spans[1]) <= 1, seed


def test_a_flip_mirrors_image_label_and_disparity() -> None:
    image = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64).contiguous()
    label = torch.arange(64, dtype=torch.uint8).expand(64, 64).contiguous()
    flipped = set()
    for seed in range(12):
        torch.manual_seed(seed)
        view = seen(image, label, (32, 32), label.float())
        falls = [part[..., 0].float().mean() > part[..., -1].float().mean()
                 for part in (view.image, view.label, view.disparity)]  # fmt: skip
        assert all(one == view.view.flipped for one in falls)
        flipped.add(view.view.flipped)
    assert flipped == {True, False}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(4, 80), width=st.integers(4, 80))
def test_cutmix_boxes_have_the_given_area(seed: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    box = cutmix_box((height, width), 1.0)
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    area = box.height * box.width
    assert 0 < area <= 0.4 * height * width + height + width
    assert cutmix_box((height, width), 0.0) == (0, 0, 0, 0)
