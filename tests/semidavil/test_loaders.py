"""Processes that load batches: how many, how they are set up, and that they change nothing."""

import os
from typing import Any

import cv2
import pytest
import torch
from torch.utils.data import Dataset

from semidavil.config import Config, preset
from semidavil.data import loaders
from semidavil.data.loaders import evaluation_loader, training_loader, workers_of
from semidavil.data.loading import EvalSet
from semidavil.data.streams import image_paths
from semidavil.language.captions import Caption

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Where(Dataset):
    """Items that say who has loaded them."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((3, 2, 2), index, dtype=torch.uint8)
        return {
            "image": image,
            "pid": os.getpid(),
            "threads": (cv2.getNumThreads(), torch.get_num_threads()),
        }


def config(**runtime: Any) -> Config:
    return preset("toy", {f"runtime.{name}": value for name, value in runtime.items()})


@pytest.mark.parametrize(
    ("runtime", "device", "cpus", "workers"),
    [
        ({"threads": 12}, GPU, 64, 11),  # what a sweep gives a trial
        ({"threads": 1}, GPU, 64, 0),
        ({"threads": 0}, GPU, 8, 7),
        ({"threads": 0, "world_size": 2}, GPU, 8, 3),
        ({"threads": 64}, GPU, 64, 16),
        ({"threads": 12}, CPU, 64, 0),
        ({"threads": 1, "num_workers": 3}, CPU, 2, 3),
        ({"threads": 8, "num_workers": "0"}, GPU, 8, 0),
    ],
)
def test_workers_follow_the_cpus_of_a_run(
    monkeypatch: pytest.MonkeyPatch, runtime: Any, device: torch.device, cpus: int, workers: int
) -> None:
    monkeypatch.setattr(loaders, "available_cpus", lambda: cpus)
    assert workers_of(config(**runtime), device) == workers


def test_how_many_workers_is_read_from_text() -> None:
    assert (
        config(num_workers=3).replace({"runtime.num_workers": "auto"}).runtime.num_workers == "auto"
    )
    for value in ("auto", 0, 5):
        one = config(num_workers=value)
        assert Config.from_params(one.to_params()) == one
    with pytest.raises(ValueError, match=r"runtime\.num_workers"):
        config(num_workers="many")
    with pytest.raises(ValueError, match=r"training\.lr"):
        config().replace({"training.lr": "auto"})


@pytest.mark.slow
def test_evaluation_keeps_its_processes_and_each_has_one_thread() -> None:
    loader = evaluation_loader(Where(), config(num_workers=2, eval_batch_size=6), CPU)
    passes = [list(loader) for _ in range(2)]
    for batches in passes:  # 3 windows an image: two images a batch
        assert [batch["image"][:, 0, 0, 0].tolist() for batch in batches] == [
            [0, 1], [2, 3], [4, 5], [6, 7]
        ]  # fmt: skip
        assert {threads for batch in batches for threads in batch["threads"]} == {(1, 1)}
    first, again = ({pid for batch in batches for pid in batch["pid"]} for batches in passes)
    assert len(first) == 2
    assert first == again
    assert os.getpid() not in first


def test_without_workers_everything_happens_here() -> None:
    (batch,) = evaluation_loader(Where(), config(eval_batch_size=100), CPU)
    assert set(batch["pid"]) == {os.getpid()}
    steps = list(training_loader(Where(), range(5, 8), config(), CPU))
    assert [int(step["image"][0, 0, 0]) for step in steps] == [5, 6, 7]


@pytest.mark.slow
def test_validation_images_are_the_same_from_any_process(tiny_toy: dict[str, str]) -> None:
    one = preset("toy", {"data.budget": 5, **tiny_toy})
    captions = dict.fromkeys(image_paths(one), Caption(("a", "b", "c")))
    here, there = (
        list(evaluation_loader(EvalSet(one, captions), chosen, CPU))
        for chosen in (one, one.replace({"runtime.num_workers": 2}))
    )
    assert len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert all(map(torch.equal, a["label"], b["label"]))
        assert (a["name"], a["captions"]) == (b["name"], b["captions"])
