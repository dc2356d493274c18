"""A finished run as a model of MLflow, and its data sets: logged once, whatever becomes of the store."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from plugin_sources import WORKING
from servers import away, raising
from slow_cases import also_slow

from semidavil.config import Config, preset
from semidavil.names import WEIGHTS
from semidavil.plugin_files import read
from semidavil.plugins import use
from sweeps.serving import _load_pyfunc
from sweeps.track.clean import leftovers
from sweeps.track.datasets import datasets_of
from sweeps.track.deliver import deliver_all
from sweeps.track.outbox import Outbox
from sweeps.track.store import Store

CONFIG = preset("toy", {"data.budget": 4})
SEEN = (
    "cityscapes/train/images=aa cityscapes/train/labels=bb cityscapes/val/images=cc "
    "cityscapes/val/labels=dd gta5/train/images=ee gta5/train/labels=ff weights=00"
)
CAPTION = "a road with cars"


def ended(store: Store, weights: bytes = b"weights", config: Config = CONFIG) -> Outbox:
    """A run that is trained, and of which the store knows nothing but its data yet."""
    experiment = store.experiment_id("attention")
    run_id = store.create_run(experiment, "cell", config, {"key": config.key(), "data": SEEN})
    folder = Path(store.storage.of(run_id))
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / WEIGHTS).write_bytes(weights)
    return Outbox(store.within(0), run_id, 0, folder)


def finish(outbox: Outbox) -> bool:
    return outbox.finish({"final/miou": 50.0, "final/seconds": 3.0}, outbox.folder / "artifacts")


def found(store: Store, run_id: str) -> tuple[Run, list[LoggedModel]]:
    run = store.client.get_run(run_id)
    which = f"source_run_id = '{run_id}'"
    return run, list(store.client.search_logged_models([run.info.experiment_id], which))


def test_a_finished_run_is_a_model_that_holds_no_second_copy_of_its_weights(store: Store) -> None:
    outbox = ended(store)
    assert finish(outbox)
    run, (model,) = found(store, outbox.run_id)
    assert (model.name, model.status) == ("segmenter", LoggedModelStatus.READY)
    assert [(metric.key, metric.value) for metric in model.metrics] == [("final/miou", 50.0)]
    assert (model.params["model.fusion"], model.params["data.budget"]) == ("dlg", "4")
    assert [one.model_id for one in run.outputs.model_outputs] == [model.model_id]
    (file,) = store.client.list_logged_model_artifacts(model.model_id)
    assert file.path == "MLmodel"
    contexts = {one.tags[0].value: one.dataset.name for one in run.inputs.dataset_inputs}
    assert contexts == {
        "source": "gta5 train", "labelled": "cityscapes train",
        "unlabelled": "cityscapes train", "validation": "cityscapes val",
    }  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "create_logged_model", "set_terminated",
        *also_slow("log_inputs", "log_model_artifacts", "log_outputs", "finalize_logged_model"),
    ],
)  # fmt: skip
def test_a_store_that_goes_away_in_between_gets_one_model_later(
    call: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the calls arrives, and its answer is lost."""
    outbox, real = ended(store), getattr(store.client, call)

    def lost(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise away()

    with monkeypatch.context() as cut:
        cut.setattr(store.client, call, lost)
        assert not finish(outbox)
    assert deliver_all(store, print) == 1
    run, (model,) = found(store, outbox.run_id)
    assert (run.info.status, model.status) == ("FINISHED", LoggedModelStatus.READY)
    assert len(run.outputs.model_outputs) == 1
    assert len(run.inputs.dataset_inputs) == 4
    assert len(model.metrics) == 1
    assert len(store.client.get_metric_history(outbox.run_id, "final/miou")) == 1


def test_a_server_that_knows_no_models_costs_a_run_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = ended(store)
    unknown = raising(lambda: MlflowException("404: /api/2.0/mlflow/logged-models"))
    monkeypatch.setattr(store.client, "search_logged_models", unknown)
    assert finish(outbox)
    assert store.run(outbox.run_id).status == "FINISHED"
    assert "has no model" in caplog.text


def test_a_deleted_run_takes_its_model_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, other = ended(store), ended(store, config=CONFIG.replace({"seed": 1}))
    assert finish(outbox)
    assert finish(other)
    store.delete(outbox.run_id)
    assert found(store, outbox.run_id)[1] == []
    assert len(found(store, other.run_id)[1]) == 1
    unknown = raising(lambda: MlflowException("404: /api/2.0/mlflow/logged-models"))
    with monkeypatch.context() as old:
        old.setattr(store.client, "search_logged_models", unknown)
        assert store.models() == []
        store.delete(other.run_id)
    assert {run.run_id: run.deleted for run in store.runs(deleted=True)} == {
        outbox.run_id: True, other.run_id: True
    }  # fmt: skip


def test_the_model_of_a_run_that_somebody_has_deleted_is_cleaned_away(
    store: Store, tmp_path: Path
) -> None:
    outbox, other = ended(store), ended(store, config=CONFIG.replace({"seed": 1}))
    assert finish(outbox)
    assert finish(other)
    store.client.delete_run(outbox.run_id)
    (orphan,) = [one for one in leftovers(store, tmp_path, 30) if one.place.startswith("models:/")]
    assert "its run was deleted" in orphan.what
    assert orphan.remove()
    assert (found(store, outbox.run_id)[1], len(found(store, other.run_id)[1])) == ([], 1)
    assert orphan.remove(), "another process may have been faster"


def test_a_failed_run_has_data_sets_and_no_model(store: Store) -> None:
    outbox = ended(store)
    assert outbox.fail("ValueError: broken", True, [])
    run, models = found(store, outbox.run_id)
    assert (len(run.inputs.dataset_inputs), models) == (4, [])


def digests(changes: dict[str, Any], seen: str = SEEN) -> dict[str, str]:
    found = datasets_of(CONFIG.replace(changes), seen)
    return {one.tags[0].value: one.dataset.digest for one in found}


def test_data_sets_have_one_digest_where_runs_saw_the_same() -> None:
    first = digests({})
    assert len(set(first.values())) == 4  # MLflow keeps one of equal ones
    assert digests({"loss.name": "ce", "training.lr": 1.0}) == first

    def changed(changes: dict[str, Any], seen: str = SEEN) -> set[str]:
        return {name for name, digest in digests(changes, seen).items() if first[name] != digest}

    assert changed({"seed": 1}) == changed({"data.budget": 8}) == {"labelled", "unlabelled"}
    assert changed({}, SEEN.replace("train/labels=bb", "train/labels=b0")) == {"labelled"}
    assert changed({}, SEEN.replace("val/labels=dd", "val/labels=d0")) == {"validation"}
    assert changed({}, SEEN.replace("gta5/train/images=ee", "gta5/train/images=e0")) == {"source"}


def test_data_sets_are_those_that_the_method_draws_from() -> None:
    assert set(digests({"data.budget": 0})) == {"source", "unlabelled", "validation"}
    assert set(digests({"training.method": "source_only"})) == {"source", "validation"}
    assert set(digests({"training.method": "target_only"})) == {"labelled", "validation"}
    assert digests({}, "feed") == {}
    volumes = {"data.benchmark": "synapse", "training.method": "uamt"}
    assert set(digests(volumes, "generated=abdomen-v1")) == {"labelled", "unlabelled", "validation"}


# What MLflow makes of the model


@pytest.fixture(scope="module")
def weights(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Of a network as it begins."""

    def make(folder: Path) -> None:
        from semidavil.experiments.street import build_method, vlm_of
        from semidavil.models.weights import save_weights

        network = build_method(CONFIG, vlm_of(CONFIG), 19).student
        save_weights(folder / WEIGHTS, network, CONFIG, "student")

    return made_once("untrained", make) / WEIGHTS


@pytest.fixture
def run_id(store: Store, weights: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run, of a store that MLflow finds by its variable."""
    outbox = ended(store, weights.read_bytes())
    assert finish(outbox)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    return outbox.run_id


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), image)
    return path


@pytest.mark.slow
def test_mlflow_loads_a_run_by_its_id_and_sees_what_predict_sees(
    store: Store, run_id: str, weights: Path, picture: Path
) -> None:
    from semidavil.data.images import read_rgb
    from semidavil.experiments.predictor import Predictor

    expected = Predictor.load(weights, "cpu")(read_rgb(picture), CAPTION)
    own = Predictor.load(weights, "cpu")(read_rgb(picture))
    _, (model,) = found(store, run_id)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}", model_config={"device": "cpu"})
    content = picture.read_bytes()
    images = [picture, content, base64.b64encode(content).decode(), read_rgb(picture)]
    images.append(f"data:image/png;base64,{images[2]}")
    seen = loaded.predict(pd.DataFrame({"image": images, "caption": [CAPTION] * 4 + [None]}))
    for labels, confidence in zip(seen["labels"][:4], seen["confidence"][:4], strict=True):
        assert np.array_equal(labels, expected.labels)
        assert np.array_equal(confidence, expected.confidence)
    assert seen["caption"].tolist() == [CAPTION] * 4 + [" | ".join(own.captions)]
    assert np.array_equal(seen["labels"][4], own.labels)
    assert seen["classes"][0][:2] == ["road", "sidewalk"]

    by_run = mlflow.pyfunc.load_model(f"runs:/{run_id}/segmenter")
    packed = by_run.predict(
        pd.DataFrame({"image": [content], "caption": [CAPTION]}), params={"encoding": "png"}
    )
    ids, sure = (
        cv2.imdecode(np.frombuffer(packed[name][0], np.uint8), cv2.IMREAD_UNCHANGED)
        for name in ("labels", "confidence")
    )
    assert np.array_equal(ids, expected.labels)
    assert np.abs(sure / 255 - expected.confidence).max() <= 0.5 / 255 + 1e-6

    for wrong, why in (
        (str(picture), "text is read as base64"),
        (content[:60], "cut short"),
        (np.zeros((4, 4)), "must be (height, width, 3)"),
        (np.full((4, 4, 3), 0.5), "whole numbers"),
    ):
        with pytest.raises(MlflowException) as refused:
            by_run.predict(pd.DataFrame({"image": [wrong]}))
        assert why in str(refused.value)
        assert refused.value.error_code == "INVALID_PARAMETER_VALUE"  # a server's answer is 400


@pytest.mark.slow
def test_mlflow_models_predict_segments_a_picture(
    store: Store, run_id: str, picture: Path, tmp_path: Path
) -> None:
    from mlflow.models.cli import commands

    _, (model,) = found(store, run_id)
    content = base64.b64encode(picture.read_bytes()).decode()
    rows = [{"image": content, "caption": CAPTION}, {"image": content}]
    asked = {"dataframe_records": rows, "params": {"encoding": "png"}}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = CliRunner().invoke(
        commands,
        [
            "predict", "-m", f"models:/{model.model_id}", "--env-manager", "local",
            "-i", str(tmp_path / "asked.json"), "-o", str(tmp_path / "said.json"),
        ],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    first, second = json.loads((tmp_path / "said.json").read_text())["predictions"]
    labels = cv2.imdecode(
        np.frombuffer(base64.b64decode(first["labels"]), np.uint8), cv2.IMREAD_UNCHANGED
    )
    assert labels.shape == (40, 70)
    assert first["caption"] == CAPTION
    assert second["caption"].startswith("a street scene")


@pytest.mark.slow
def test_a_model_whose_run_is_not_in_this_store_says_so(
    run_id: str, store: Store, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (model,) = found(store, run_id)
    folder = mlflow.artifacts.download_artifacts(f"models:/{model.model_id}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    with pytest.raises(MlflowException, match="set MLFLOW_TRACKING_URI"):
        mlflow.pyfunc.load_model(folder)


def test_a_model_of_a_plugins_run_finds_it_by_the_environment(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from semidavil.experiments.street import build_method, vlm_of
    from semidavil.models.weights import save_weights

    (tmp_path / "my.py").write_text(WORKING)
    with use(read(tmp_path / "my.py")):
        config = preset("toy", {"model.fusion": "nearest", "model.captions": "colours"})
        network = build_method(config, vlm_of(config), 19).student
        save_weights(tmp_path / WEIGHTS, network, config, "student")
    with pytest.raises(MlflowException, match=r"it uses my\.py@.*SEMIDAVIL_PLUGINS=FILE"):
        _load_pyfunc(str(tmp_path), {"device": "cpu"})
    monkeypatch.setenv("SEMIDAVIL_PLUGINS", str(tmp_path / "my.py"))
    model = _load_pyfunc(str(tmp_path), {"device": "cpu"})
    seen = model.predict(pd.DataFrame({"image": [picture]}))  # whose captioner is looked up now
    assert seen["caption"][0] == "a picture of 110"
