"""`python -m semidavil export --to hub`: a folder that says what its weights are worth, and runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from harbour import DESCRIPTION
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, preset
from semidavil.descriptions import BenchmarkFile, DataSet
from semidavil.experiments.predictor import Predictor, find_weights
from semidavil.experiments.publishing import FinishedRun, card_of, local_places
from semidavil.experiments.street import build_method, vlm_of
from semidavil.metrics import Evaluation
from semidavil.models.weights import save_weights
from semidavil.names import WEIGHTS
from semidavil.registry import add

CONFIG = preset(
    "toy", {"data.budget": 4, "runtime.data_root": "/home/ann/data", "runtime.cache_dir": "/home/ann/cache"}
)  # fmt: skip


def finished(root: Path, name: str, config: Config, right: int) -> Path:
    """A run as MLflow keeps it: of 100 pixels of road, `right` are right and the others taken for sky."""
    folder = root / "mlruns" / "attention" / name / "artifacts"
    folder.mkdir(parents=True)
    network = build_method(config, vlm_of(config), 19).student
    save_weights(folder / WEIGHTS, network, config, "teacher", "cityscapes/val/labels=0123")
    confusion = np.zeros((1, 19, 19), np.int64)
    confusion[0, 0, 0], confusion[0, 0, 10] = right, 100 - right
    Evaluation(["a"], confusion, confusion[0]).save(folder / "evaluation.npz")
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three seeds of one cell, and a run with another budget."""
    monkeypatch.chdir(tmp_path)
    for seed, right in enumerate((80, 60, 40)):
        finished(tmp_path, f"run{seed}", CONFIG.replace({"seed": seed}), right)
    finished(tmp_path, "other", CONFIG.replace({"data.budget": 8, "seed": 3}), 10)
    torn = tmp_path / "mlruns" / "attention" / "torn" / "artifacts"
    torn.mkdir(parents=True)
    (torn / WEIGHTS).write_bytes(b"no weights")
    return tmp_path


def export(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", *arguments])
    return done.exit_code, " ".join(done.output.split())


def test_a_folder_for_a_hub_says_what_was_measured_and_runs(runs: Path) -> None:
    code, output = export("run1", "--to", "hub", "--out", "hub/street", "--license", "apache-2.0")
    assert code == 0, output
    assert "python -m semidavil predict hub/street PICTURES" in output
    card = ModelCard.load(runs / "hub" / "street" / "README.md")
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    # Road 60 of 100; sky none of 40; the others are nowhere.
    assert results == {"mean_iou": 30.0, "accuracy": 60.0}
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "street")
    assert "toy" in card.data.tags
    assert card.data.datasets is None  # generated images are none of a hub's
    # mIoU is half of the road's: 40, 30 and 20 of the three seeds.
    assert "Over the seeds 0, 1, 2, mIoU 30.00 ± 10.00" in card.text
    assert "| road | 60.00 |" in card.text
    assert "say nothing about the paper's claims" in card.text
    assert "| cityscapes/val/labels | `0123` |" in card.text
    assert "they came from `positions`" in card.text
    assert "4 labelled images of cityscapes" in card.text

    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    own, there = (Predictor.load(find_weights(x), "cpu") for x in ("run1", "hub/street"))
    assert there.config.key() == own.config.key()
    assert np.array_equal(there(image, "a road").labels, own(image, "a road").labels)
    for path in (runs / "hub" / "street").iterdir():
        assert b"/home/ann" not in path.read_bytes(), path
    settings = json.loads((runs / "hub" / "street" / "config.json").read_text())
    assert Config.from_params(settings).key() == own.config.key()


def test_what_is_not_known_is_said(runs: Path) -> None:
    (runs / "mlruns" / "attention" / "other" / "artifacts" / "evaluation.npz").unlink()
    code, output = export("other", "--to", "hub")
    assert code == 0
    assert "no licence is stated" in output
    card = ModelCard.load(runs / "segmenter-hub" / "README.md")
    assert (card.data.eval_results, card.data.license) == (None, "other")
    assert "Not known: the run's evaluation was not beside its weights" in card.text


def test_what_others_will_miss_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.pt").touch()
    config = CONFIG.replace({"model.vlm": "ViT-B-16", "model.weights": str(tmp_path / "clip.pt")})
    assert local_places(config) == [f"model.weights={tmp_path / 'clip.pt'}"]
    assert local_places(CONFIG) == []
    run = FinishedRun(tmp_path / WEIGHTS, config, {"network": "student"})
    card = card_of(run, "street", "", local_places(config))
    assert f"without which it cannot be used: model.weights={tmp_path / 'clip.pt'}" in card.text
    blind = FinishedRun(tmp_path / WEIGHTS, config.replace({"model.fusion": "none"}), run.about)
    assert "reads no captions" in card_of(blind, "street", "", []).text


def test_options_of_another_format_are_refused(runs: Path) -> None:
    code, output = export("run1", "--to", "hub", "--caption", "a road")
    assert code == 1
    assert "leave them out" in output
    code, output = export("run1", "--to", "torch", "--license", "mit")
    assert code == 1
    assert "add --to hub" in output


def test_a_card_names_a_described_benchmark_by_one_hash(tmp_path: Path) -> None:
    """That of the benchmark, which its runs have; the data set's own is another."""
    key = add(BenchmarkFile(name="b", target=DataSet.model_validate(yaml.safe_load(DESCRIPTION))))
    target = BENCHMARKS[key].target
    config = preset("small", {"data.benchmark": key, "data.budget": 4})
    about = {"network": "teacher", "data": f"{target}/train/images=0 {target}/val/labels=1"}
    card = str(card_of(FinishedRun(tmp_path / WEIGHTS, config, about), "n", "", []))
    assert set(re.findall(r"\w+@\w+", card)) == {key}
    assert "| harbour/train/images | `0` |" in card
    assert "4 labelled images of harbour and unlabelled images of harbour" in card
