"""Miniature data sets in the real formats."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from offline_hub import OfflineHub
from PIL import Image
from png_files import write_png
from small_clip import WORDS, save_clip

from semidavil.data.fingerprint import memo_of
from semidavil.evaluation import latency
from semidavil.models.vlm import VLM, load_vlm
from semidavil.toy.abdomen import write_case
from semidavil.toy.write import ensure_toy_data

Size = tuple[int, int]


@pytest.fixture(scope="session", autouse=True)
def _latency_is_measured_thrice() -> Iterator[None]:
    """And not for a sixth of a second at the end of every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _tests_keep_nothing_in_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configs of tests name a `runtime.cache_dir`: the default is data/ in the working folder."""
    memo = memo_of(Path("data").absolute())
    before = memo.stat().st_size if memo.exists() else 0
    yield
    added = memo.read_bytes()[before:].decode() if memo.exists() else ""  # by a user's run, maybe
    assert str(tmp_path_factory.getbasetemp()) not in added, f"a test has written into {memo}"


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes: 12 training and 4 validation images of the target, 6 of each source."""
    counts = {"train": 12, "val": 4, "gta5": 6, "synthia": 6}
    return ensure_toy_data(tmp_path_factory.mktemp("toy"), counts=counts, progress=False)


@pytest.fixture(scope="session")
def tiny_toy(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings that make a toy Config read `tiny_root` in place of the full toy data."""
    return {
        "data.toy": "false",
        "runtime.data_root": str(tiny_root),
        "runtime.cache_dir": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="session")
def tiny_abdomens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine generated scans: six for training, one and two for the rest."""
    folder = tmp_path_factory.mktemp("abdomens")
    for index in range(9):
        write_case(folder / "synapse" / f"case{index:04d}.h5", index)
    return folder


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfflineHub:
    return OfflineHub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` images of one data set; returns the folder that `--data-root` would name.

    `label(index)` gives the raw ids of an image; by default, all ids of the data set in turn.
    """
    rng = np.random.default_rng(0)

    def write(
        dataset: str,
        label: Callable[[int], np.ndarray] | None = None,
        count: int = 3,
        size: Size = (16, 24),
        splits: tuple[str, ...] = ("train", "val"),
    ) -> Path:
        root = tmp_path / dataset
        label = label or (lambda index: np.full(size, 7 if dataset != "camvid" else 3, np.uint8))
        for split in splits:
            for index in range(count):
                image = rng.integers(0, 256, (*size, 3), np.uint8)
                ids = label(index)
                if dataset == "cityscapes":
                    stem = f"aachen_{index:06d}_000019"
                    folder = f"{split}/aachen"
                    write_png(root / "leftImg8bit" / folder / f"{stem}_leftImg8bit.png", image)
                    write_png(root / "gtFine" / folder / f"{stem}_gtFine_labelIds.png", ids)
                elif dataset == "gta5":
                    write_png(root / "images" / f"{index + 1:05d}.png", image)
                    path = root / "labels" / f"{index + 1:05d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    paletted = Image.fromarray(ids, mode="P")
                    paletted.putpalette(rng.integers(0, 256, 768).tolist())
                    paletted.save(path)
                elif dataset == "synthia":
                    write_png(root / "RGB" / f"{index:07d}.png", image)
                    label16 = np.zeros((*ids.shape, 3), np.uint16)
                    label16[..., 0] = ids
                    label16[..., 1] = 300  # instances need more than eight bits
                    write_png(root / "GT" / "LABELS" / f"{index:07d}.png", label16)
                elif dataset == "camvid":
                    write_png(root / split / f"frame_{index}.png", image)
                    write_png(root / f"{split}annot" / f"frame_{index}.png", ids)
                else:
                    write_png(root / split / "images" / f"f{index}_T01.png", image)
                    write_png(root / split / "labels" / f"f{index}_T01.png", ids)
        return tmp_path

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CLIP in a `folder`, as open_clip has it (`reference`), and as ours (`vlm`)."""
    folder = tmp_path_factory.mktemp("clip")
    reference = save_clip(folder)
    return SimpleNamespace(folder=folder, reference=reference, vlm=load_vlm(str(folder), "bundled"))


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A CLIP with a word-level Hugging Face tokenizer and average pooling, as the toy CLIP is."""
    folder = tmp_path_factory.mktemp("words")
    save_clip(
        folder,
        v_pool_type="avg",
        t_hf_tokenizer_name="words",
        t_vocab_size=len(WORDS) + 4,
        t_pool_type="eos",
        t_eos_id=len(WORDS) + 3,
    )
    return load_vlm(str(folder), "bundled")
