"""Benchmarks: label tables as functions, for every pair of a benchmark and one of its data sets."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, LABEL_IDS, UNKNOWN, Benchmark

REAL = os.environ.get("SEMIDAVIL_REAL_DATA", "")
IMAGES = [b for b in BENCHMARKS.values() if b.kind == "images"]
PAIRS = [(b, dataset) for b in IMAGES for dataset in b.datasets]


@given(pair=st.sampled_from(PAIRS), raw=st.integers(0, 65535))
def test_an_id_is_a_class_or_ignored_or_unknown(pair: tuple[Benchmark, str], raw: int) -> None:
    benchmark, dataset = pair
    index = int(benchmark.lookup(dataset)[raw])
    if raw not in LABEL_IDS[dataset]:
        assert index == UNKNOWN
    elif LABEL_IDS[dataset][raw] is None:
        assert index == IGNORE_INDEX
    else:
        assert index < len(benchmark.classes) or index == IGNORE_INDEX


@given(pair=st.sampled_from(PAIRS), ids=st.lists(st.integers(0, 255), min_size=1, max_size=64))
def test_a_table_works_on_whole_labels(pair: tuple[Benchmark, str], ids: list[int]) -> None:
    benchmark, dataset = pair
    lookup = benchmark.lookup(dataset)
    for kind in (np.uint8, np.uint16):
        label = np.array([ids], kind)
        assert lookup[label].tolist() == [[int(lookup[i]) for i in ids]]
        assert lookup[label].dtype == np.uint8


def test_cityscapes_classes_take_their_published_train_ids() -> None:
    trained = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    for name in ("cityscapes", "gta5"):
        lookup = BENCHMARKS["gta5-cityscapes"].lookup(name)
        assert lookup[list(trained)].tolist() == list(range(19))
        assert {int(i) for i in np.flatnonzero(lookup < 19)} == set(trained)


def test_budgets_are_the_papers() -> None:
    budgets = {name: b.budgets for name, b in BENCHMARKS.items()}
    assert budgets["gta5-cityscapes"] == (0, 100, 200, 500, 1000, 2975)
    assert budgets["cityscapes-cityscapes"] == (100, 200, 500, 1000, 2975)
    assert budgets["idda-camvid"] == (0, 25, 50, 100, 200, 367)


def test_the_13_classes_are_the_16_without_wall_fence_and_pole() -> None:
    benchmark = BENCHMARKS["synthia-cityscapes"]
    left_out = set(range(16)) - set(benchmark.subsets["13"])
    assert {benchmark.classes[i] for i in left_out} == {"wall", "fence", "pole"}


@pytest.mark.skipif(not REAL, reason="SEMIDAVIL_REAL_DATA names no folder with real images")
@pytest.mark.parametrize("dataset", ["camvid", "idda"])
def test_ids_are_those_that_the_data_sets_list(dataset: str) -> None:
    listed = json.loads((Path(REAL) / dataset / "classes.json").read_text())
    assert {row["id"] for row in listed} == set(LABEL_IDS[dataset])
    lookup = BENCHMARKS["idda-camvid"].lookup(dataset)
    for row in listed:
        expected = row["id"] if dataset == "camvid" else row["camvid_id"]
        assert int(lookup[row["id"]]) == (IGNORE_INDEX if expected == 11 else expected), row["name"]
