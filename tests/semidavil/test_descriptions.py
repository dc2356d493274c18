"""Descriptions of data sets and benchmarks: what is wrong is named, and a key stands for all that counts."""

import json
import pickle
from pathlib import Path

import pytest
import yaml
from harbour import DESCRIPTION, write_harbour

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, UNKNOWN
from semidavil.config import Config, ConfigError, preset
from semidavil.data.own import own_benchmark, read_dataset, ready_names
from semidavil.descriptions import BenchmarkFile, DataSet, DescriptionError
from semidavil.registry import MOST_CHARACTERS, TEXTS, add, register, registered, text_of


def harbour(**changes: object) -> DataSet:
    return DataSet.model_validate({**yaml.safe_load(DESCRIPTION), **changes})


def with_entries(path: Path, **changes: object) -> Path:
    tree = {**yaml.safe_load(DESCRIPTION), **changes}
    path.write_text(yaml.safe_dump({name: said for name, said in tree.items() if said is not None}))
    return path


WRONG = [
    ({"classs": {"a": 1}}, r"no entry 'classs': did you mean classes\?"),
    ({"labels": None}, "labels: is missing"),
    ({"classes": {}}, "classes: .* at least 1"),
    ({"classes": {"quay": []}}, "classes: quay has no id"),
    ({"classes": {"quay": 70000}}, "classes: quay: 70000 is no label id"),
    ({"classes": {"quay": "three"}}, "classes: quay: 'three' is no label id"),
    ({"classes": {"a": 3, "b": [3]}}, "the id 3 is both a and b"),
    ({"classes": {"quay": {"id": 3, "color": [1, 2, 3]}}}, "classes: quay: no entry 'color'"),
    ({"ignored": [2]}, "ignored: the id 2 is the class water"),
    ({"encoding": "rgb"}, "encoding: Input should be 'index', 'colour'"),
    ({"encoding": "colour"}, r"classes: sky: 1 is no colour: write \[128, 0, 0\]"),
    ({"encoding": "panoptic"}, "segments: the pattern of COCO's JSON"),
    ({"images": "../other/*.jpg"}, "images: '../other/.*leads out of the data set's folder"),
    ({"images": "frames/a.jpg"}, "is one file: write a pattern"),
    ({"labels": "masks/{number}.png"}, r"labels: \{number\} is nothing that images"),
    ({"labels": "masks/mask.png"}, "is the same file for all images"),
    ({"splits": {}}, "splits: name at least train"),
    ({"splits": {"train": "rest", "val": "rest"}}, "train and val cannot both be the rest"),
    ({"images": "{split}/*.jpg"}, r"train must be one name, which stands for \{split\}"),
    ({"name": "my harbour"}, "'my harbour' is no name"),
    ({"splits": {"train": "rest"}}, "target: harbour has no split val"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = with_entries(tmp_path / "dataset.yaml", **changes)
    with pytest.raises(DescriptionError, match=rf"dataset\.yaml: .*{message}"):
        own_benchmark(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is no YAML"),
        ("classes: {a: 1, b: 2, a: 3}", "'a' is there twice"),
        ("- a", "is no description"),
        (None, "cannot be read .*--init"),
    ],
)
def test_a_file_that_is_no_description(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    if text:
        path.write_text(text)
    with pytest.raises(DescriptionError, match=message):
        own_benchmark(str(path))


WRONG_BENCHMARKS = [
    ({"source": "gta"}, "'gta' is neither a file beside it nor one of cityscapes, gta5"),
    ({"source": "gta5"}, "no class of the source is one of quay, sky2, water"),
    ({"map": {"car": "boat"}, "source": "gta5"}, "map: 'boat' is none of the classes"),
    ({"map": {"ship": "quay"}}, "map: no data set has a class 'ship'"),
    ({"classes": ["sky2", "boat"]}, "the target has no class 'boat'"),
    ({"classes": ["sky2", "sky2"]}, "classes: one is named twice"),
    ({"budget": [1]}, "budget: no such entry"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG_BENCHMARKS, ids=[m for _, m in WRONG_BENCHMARKS]
)
def test_what_is_wrong_with_a_benchmark_is_named(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with_entries(tmp_path / "dataset.yaml", classes={"sky2": 1, "water": 2, "quay": 3})
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump({"name": "b", "target": "dataset.yaml", **changes}))
    with pytest.raises(DescriptionError, match=message):
        own_benchmark(str(path))


def test_a_source_and_a_target_that_name_classes_otherwise(tmp_path: Path) -> None:
    write_harbour(tmp_path / "harbour")
    path = tmp_path / "benchmark.yaml"
    path.write_text(
        "name: to-harbour\nsource: gta5\ntarget: harbour\nclasses: [water, sky, quay]\n"
        "map: {wall: quay, terrain: water}\nbudgets: [0, 2]\n"
    )
    known = BENCHMARKS[own_benchmark(str(path))["data.benchmark"]]
    assert (known.source, known.budgets, known.scene) == ("gta5", (0, 2), "a harbour")
    of_source = known.lookup("gta5")
    assert of_source[[12, 22, 23, 7, 200]].tolist() == [2, 0, 1, IGNORE_INDEX, UNKNOWN]
    of_target = known.lookup(known.target)
    assert of_target[[1, 2, 3, 4, 0, 9]].tolist() == [1, 0, 2, 2, IGNORE_INDEX, UNKNOWN]
    assert known.words == {"water": ("river",)}
    assert known.palette[2].tolist() == [160, 60, 40]
    assert len({tuple(c) for c in known.palette[:3].tolist()} | {(0, 0, 0)}) == 4


def test_the_key_is_of_what_changes_a_result_and_of_nothing_else() -> None:
    def key(**changes: object) -> str:
        return preset(
            "small", {"data.benchmark": add(BenchmarkFile(name="b", target=harbour(**changes)))}
        ).key()

    plain = yaml.safe_load(DESCRIPTION)["classes"]
    same = [
        {"about": "mine"},
        {"licence": "CC0"},
        {"classes": {**plain, "quay": {"ids": [3, 4], "colour": "#010203"}}},
    ]
    other = [
        {"splits": {"train": "rest", "val": "frames/seq2"}},
        {"classes": {**plain, "water": {"id": 2}}},  # without its synonym
        {"classes": {"water": plain["water"], "sky": 1, "quay": plain["quay"]}},  # another order
        {"scene": "a pond"},
        {"divide": 2},
        {"ignored": [0, 5]},
    ]
    assert {key(**changes) for changes in same} == {key()}
    assert len({key(), *(key(**changes) for changes in other)}) == 1 + len(other)


@pytest.mark.parametrize("colours", [True, False])
def test_decoded_labels_do_not_depend_on_the_order_of_classes(colours: bool) -> None:
    """Both orders have one key, by which decoded labels are kept: each read those of the other."""
    said = ["#000080", "#800000"] if colours else [300, 20]
    names = ["water", "quay"]
    classes = dict(zip(names, said, strict=True))
    one, other = (
        harbour(classes=each, ignored=[], **({"encoding": "colour"} if colours else {}))
        for each in (classes, dict(reversed(classes.items())))
    )
    assert one.key == other.key
    assert (one.codes, one.label_ids) == (other.codes, other.label_ids)


def test_built_in_benchmarks_have_the_keys_that_they_had() -> None:
    assert (Config().key(), preset("toy").key()) == ("99fd67c89da37e7c", preset("toy").key())
    assert "data.own" not in Config().to_params()


def test_a_run_s_parameters_are_enough_to_know_its_benchmark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = preset(
        "small", {"data.benchmark": add(BenchmarkFile(name="b", target=harbour())), "seed": 1}
    )
    params, pickled, name = config.to_params(), pickle.dumps(config), config.data.benchmark

    def forget() -> None:
        monkeypatch.delitem(BENCHMARKS, name)
        monkeypatch.delitem(TEXTS, name)

    forget()
    with pytest.raises(ConfigError, match="nothing here says what the benchmark b@"):
        preset("small", {"data.benchmark": name})
    assert Config.from_params(params) == config
    assert BENCHMARKS[name].classes == ("sky", "water", "quay")
    forget()
    assert pickle.loads(pickled).key() == config.key()
    assert registered(name) == params["data.own"]


def test_a_config_brings_along_what_its_benchmark_says() -> None:
    first, second = (add(BenchmarkFile(name=n, target=harbour(scene=n))) for n in ("one", "two"))
    config = preset("small", {"data.benchmark": first}).replace({"data.benchmark": second})
    assert config.data.own == registered(second) != registered(first)
    assert config.replace({"data.benchmark": "gta5-cityscapes"}).data.own == ""
    with pytest.raises(ConfigError, match=r"has images of its own, and data\.toy draws generated"):
        config.replace({"data.toy": True})


def test_long_descriptions_fit_into_a_parameter() -> None:
    one = harbour(
        classes={
            f"class number {i}": {"id": i, "colour": [i, 7 * i % 256, 3]} for i in range(1, 134)
        }
    )
    text = text_of(BenchmarkFile(name="long", target=one))
    assert text.startswith("zlib:")
    assert len(text) < MOST_CHARACTERS
    assert BENCHMARKS[register(text)].classes == tuple(one.classes)
    with pytest.raises(DescriptionError, match="cannot be read"):
        register("zlib:broken")


@pytest.mark.parametrize("ignored", [[[0, 0, 0]], ["#000000", "#010101", "#020202"], []])
def test_ignored_colours_come_back(ignored: list[object]) -> None:
    one = harbour(encoding="colour", classes={"sky": [1, 2, 3], "sea": "#ff0000"}, ignored=ignored)
    again = DataSet.model_validate(json.loads(one.model_dump_json()))
    assert again == one
    assert len(one.ignored) == len(ignored)


@pytest.mark.parametrize("name", ready_names())
def test_ready_descriptions_can_be_sources_and_targets(name: str, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.yaml"
    path.write_text(f"name: b\nsource: gta5\ntarget: {name}\nbudgets: [0, 10]\n")
    known = BENCHMARKS[own_benchmark(str(path))["data.benchmark"]]
    assert known.target.startswith(f"{name}@")
    assert {"road", "sky", "car"} <= set(known.classes)


def test_a_folder_s_budgets_are_parts_of_its_pictures(tmp_path: Path) -> None:
    path = write_harbour(tmp_path)
    assert BENCHMARKS[own_benchmark(str(path))["data.benchmark"]].budgets == (1, 2, 4, 9)
    assert read_dataset(path).key == read_dataset(path).key
