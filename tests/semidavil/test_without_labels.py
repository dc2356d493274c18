"""Pictures without labels in own data: which they are, what counts them, and that runs learn from them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from harbour import DESCRIPTION, SIZE, picture, save, write_harbour

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, preset
from semidavil.data.checks import check_data
from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.data.filling import Filling
from semidavil.data.fingerprint import fingerprint
from semidavil.data.first_look import write_first_description
from semidavil.data.loading import TrainBatches
from semidavil.data.own import own_benchmark, read_dataset
from semidavil.data.scans import describe
from semidavil.data.store import IMAGE, LABEL, open_store
from semidavil.data.streams import all_samples, train_samples
from semidavil.data.suspicions import suspicions
from semidavil.descriptions import UNLABELLED, DataSet, DescriptionError
from semidavil.evaluation.data_page import DataPage
from semidavil.language.captions import Caption

MORE = range(100, 103)  # pictures of a folder of their own


def add_pictures(root: Path, folder: str = "more") -> None:
    for number in MORE:
        save(root / folder / f"{number}.jpg", picture(number)[0])


def drop_labels(root: Path, *names: str) -> None:
    for name in names:
        (root / "masks" / f"{name}.png").unlink()


def written(root: Path, unlabelled: object, **changes: object) -> DescribedReader:
    """Twelve pictures with masks, three of them val, and three without: `unlabelled` is the entry."""
    write_harbour(root)
    add_pictures(root)
    tree = {**yaml.safe_load(DESCRIPTION), "unlabelled": unlabelled, **changes}
    (root / "dataset.yaml").write_text(yaml.safe_dump(tree))
    return DescribedReader(read_dataset(root / "dataset.yaml"), root)


def config_of(root: Path, **changes: object) -> Config:
    place = {"runtime.cache_dir": str(root.parent / "cache"), "data.budget": 2}
    return preset("toy", {**own_benchmark(str(root)), **place, **changes})


def names(reader: DescribedReader, split: str) -> list[str]:
    return [sample.name for sample in reader.samples(split)]


FOLDER = [str(number) for number in MORE]


@pytest.mark.parametrize(
    ("unlabelled", "expected"),
    [
        ("rest", ["001", "004"]),
        ("more", FOLDER),
        ("more/**", FOLDER),
        ("m*/10[12].jpg", []),
        ("more/*2.jpg", ["102"]),
        (["rest", "more/100.jpg"], ["001", "004", "100"]),
        # Of all, what is in no split, or is of train and has no label.
        (["frames", "more"], ["001", "004", *FOLDER]),
    ],
)
def test_what_is_unlabelled(unlabelled: object, expected: list[str], tmp_path: Path) -> None:
    reader = written(tmp_path, unlabelled)
    drop_labels(tmp_path, "seq0/001", "seq1/004")
    if not expected:
        with pytest.raises(
            DataError, match=r"no picture is in .m.*jpg., which .* names as unlabelled"
        ):
            reader.samples(UNLABELLED)
        return
    assert names(reader, UNLABELLED) == expected
    assert all(sample.label_file is None for sample in reader.samples(UNLABELLED))
    if "001" in expected:
        assert names(reader, "train") == ["000", "002", "003", "005", "006", "007", "008"]
    else:  # a label that is missing is still missed
        with pytest.raises(DataError, match=r"2 of 9 images of train .*`unlabelled: rest`"):
            reader.samples("train")


def test_what_is_scored_and_its_neighbours_are_never_unlabelled(tmp_path: Path) -> None:
    """Frames of a held-out sequence look alike: those without labels are left out, and that is said."""
    reader = written(tmp_path, ["rest", "frames", "more"])
    drop_labels(tmp_path, "seq3/010")
    assert names(reader, "val") == ["009", "011"]
    assert names(reader, UNLABELLED) == FOLDER
    assert any("1 pictures of val have no label and are left out" in s for s in reader.left_over())
    plain = DescribedReader(DataSet.model_validate(yaml.safe_load(DESCRIPTION)), tmp_path)
    with pytest.raises(DataError, match=r"1 of 3 images of val have no label.*of its split$"):
        plain.samples("val")


def test_labels_in_the_same_folder_are_no_pictures(tmp_path: Path) -> None:
    for number in range(4):
        image, ids = picture(number)
        save(tmp_path / f"all/{number}.png", image)
        if number < 3:
            save(tmp_path / f"all/{number}_mask.png", ids)
    splits = {"train": "rest", "val": "all/0.png"}
    about = {"images": "all/*.png", "labels": "all/{stem}_mask.png", "splits": splits}
    tree = {**yaml.safe_load(DESCRIPTION), **about, "unlabelled": "all"}
    reader = DescribedReader(DataSet.model_validate(tree), tmp_path)
    assert (names(reader, "train"), names(reader, UNLABELLED)) == (["1", "2"], ["3"])


@pytest.mark.parametrize("budget", [0, 2, 9])
def test_a_budget_counts_pictures_with_labels_alone(budget: int, tmp_path: Path) -> None:
    written(tmp_path / "h", "more", splits={"train": "rest", "val": "frames/seq3"})
    if not budget:  # nothing to learn from without a source
        assert BENCHMARKS[own_benchmark(str(tmp_path / "h"))["data.benchmark"]].budgets == (
            1,
            2,
            4,
            9,
        )
        with pytest.raises(DataError, match="training set of 9 with labels: choose at most 9"):
            check_data(config_of(tmp_path / "h", **{"data.budget": 10}))
        return
    streams = train_samples(config_of(tmp_path / "h", **{"data.budget": budget}))
    drawn = [sample.name for sample in streams["unlabelled"]]
    assert len(streams["labelled"]) == budget
    assert drawn[-3:] == FOLDER
    assert len(drawn) == 9 - budget + 3  # at nine, they alone: no label is learnt from twice
    without = train_samples(
        config_of(tmp_path / "h", **{"data.budget": budget}).replace({"seed": 1})
    )
    assert [s.name for s in without["unlabelled"]][-3:] == FOLDER


def test_the_check_reads_them_and_keeps_their_pixels(tmp_path: Path) -> None:
    reader = written(tmp_path / "h", "more")
    config = config_of(tmp_path / "h")
    target = BENCHMARKS[config.data.benchmark].target
    assert [s.name for s in all_samples(config)[target, UNLABELLED]] == FOLDER
    with Filling(config) as filling:
        check_data(config, filling=filling)
        filling.finish()
    store = open_store(config, target)
    stored = [store.array(IMAGE, sample.image) for sample in reader.samples(UNLABELLED)]
    assert all(one is not None for one in stored)
    assert store.array(LABEL, tmp_path / "h/masks/seq0/000.png") is not None
    save(tmp_path / "h/more/200.jpg", picture(0)[0])
    (tmp_path / "h/more/201.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"harbour, unlabelled: .*201\.jpg"):
        check_data(config)


def test_batches_hold_them(tmp_path: Path) -> None:
    written(tmp_path / "h", "more")
    for number in MORE:
        save(tmp_path / f"h/more/{number}.jpg", np.full((*SIZE, 3), 250, np.uint8))
    config = config_of(tmp_path / "h", **{"data.budget": 6, "training.batch_size": 2})
    said = {s.image: Caption(("",)) for group in all_samples(config).values() for s in group}
    batches = TrainBatches(config, said, len, ["labelled", "unlabelled"])
    bright = [
        (image > 240).all().item()
        for step in range(3)  # six pictures: three of frames, three of more
        for image in batches[step]["unlabelled"]["image"]
    ]
    assert sum(bright) == 3
    assert not any((batches[step]["labelled"]["image"] > 240).all() for step in range(3))


def test_captions_of_labels_are_refused_where_there_are_none(tmp_path: Path) -> None:
    written(tmp_path / "h", "more")
    with pytest.raises(
        DataError, match="captions=oracle describes labels, and 3 pictures of harbour"
    ):
        check_data(config_of(tmp_path / "h", **{"model.captions": "oracle"}))


def test_they_are_part_of_what_a_run_that_draws_them_saw(tmp_path: Path) -> None:
    written(tmp_path / "h", "more")
    draws = config_of(tmp_path / "h")
    without = draws.replace({"training.method": "target_only"})
    before = fingerprint(draws), fingerprint(without)
    save(tmp_path / "h/more/200.jpg", picture(0)[0])
    assert fingerprint(draws) != before[0]
    assert fingerprint(without) == before[1]


def test_the_key_is_as_it_was_without_the_entry_and_another_with_it() -> None:
    tree = yaml.safe_load(DESCRIPTION)
    plain = DataSet.model_validate(tree)
    assert plain.key == "harbour@6f209ffe"  # of descriptions before there was the entry
    assert DataSet.model_validate({**tree, "unlabelled": []}).key == plain.key
    assert DataSet.model_validate({**tree, "unlabelled": "rest"}).key != plain.key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"unlabelled": "more.txt"},
            r"unlabelled: 'more\.txt': write rest, a folder, or a pattern",
        ),
        ({"unlabelled": "../more"}, r"unlabelled: '\.\./more' leads out"),
        (
            {
                "unlabelled": "rest",
                "splits": {"train": "rest", "val": "frames/seq3", "unlabelled": "more"},
            },
            "unlabelled is an entry, and no split beside it",
        ),
    ],
)
def test_what_is_wrong_with_the_entry_is_named(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(DESCRIPTION), **changes}))
    with pytest.raises(DescriptionError, match=message):
        read_dataset(path)


def test_the_page_and_what_is_odd_know_them(tmp_path: Path) -> None:
    reader = written(tmp_path / "h", "more")
    config = config_of(tmp_path / "h")
    benchmark = BENCHMARKS[config.data.benchmark]
    save(tmp_path / "h/more/200.jpg", picture(9)[0])  # which is one of val's
    (tmp_path / "h/more/200.jpg").write_bytes((tmp_path / "h/frames/seq3/009.jpg").read_bytes())
    scans = describe(reader, tmp_path / "cache")
    assert scans[UNLABELLED].count == 4
    assert not scans[UNLABELLED].void
    said = suspicions(benchmark, reader, scans, tmp_path / "hashes")
    assert any("one picture is in two splits" in text and "200.jpg" in text for text in said)
    assert not any("unlabelled: no label holds" in text for text in said)
    page = DataPage(benchmark)
    page.add(reader, scans)
    page.add_pictures(reader, UNLABELLED, reader.samples(UNLABELLED), 2)
    page.write(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "4 images without labels, which training learns from besides; height" in html
    assert html.count('<figure class="bare">') == 2
    assert html.count("<table>") == 2


# `data --init`

Layout = Callable[[Path], object]


def init(root: Path) -> tuple[DataSet, DescribedReader, str]:
    first = write_first_description(root)
    about = read_dataset(first.path)
    return about, DescribedReader(about, root), "\n".join(first.said)


def test_init_finds_pictures_without_labels(tmp_path: Path) -> None:
    write_harbour(tmp_path, description="")
    add_pictures(tmp_path)
    add_pictures(tmp_path, "video/a/b")
    drop_labels(tmp_path, "seq0/001")
    for number in range(12):  # depth, and the same pictures once more
        depth = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
        save(tmp_path / f"depth/{number:03d}.png", depth)
        save(tmp_path / f"right/{number:03d}.jpg", picture(number)[0])
    about, reader, said = init(tmp_path)
    # What is in `right` has the names of all pictures, of which one has no label.
    assert about.unlabelled == ("rest", "more", "video")
    assert "right: pictures of the same names, which are left alone" in said
    assert "7 pictures without labels (rest, more, video)" in said
    assert len(reader.samples("train")) == 8
    assert len(reader.samples(UNLABELLED)) == 7


def test_init_leaves_test_pictures_alone(tmp_path: Path) -> None:
    for split, numbers in (("train", range(5)), ("val", range(5, 7)), ("test", range(7, 9))):
        for number in numbers:
            image, ids = picture(number)
            save(tmp_path / f"images/{split}/{number}.jpg", image)
            if split != "test":
                save(tmp_path / f"masks/{split}/{number}.png", ids)
    add_pictures(tmp_path, "extra/test")
    about, _, said = init(tmp_path)
    assert set(about.splits) == {"train", "val"}
    assert about.unlabelled == ()
    assert "test: its pictures have no labels" in said
    assert "extra/test: 3 pictures without labels, which are left alone" in said
