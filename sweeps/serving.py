"""What MLflow loads as a finished run's model: pictures to classes, without a pickle.

    model = mlflow.pyfunc.load_model("runs:/RUN_ID/segmenter")     # or models:/MODEL_ID
    seen = model.predict(pd.DataFrame({"image": [Path("street.jpg"), Path("street.jpg").read_bytes()]}))
    seen["labels"][0], seen["confidence"][0], seen["classes"][0]   # (H, W) uint8, (H, W) float32, names

In JSON, as `mlflow models predict` and `serve` take it, an image is the file's contents in base64:
`{"dataframe_records": [{"image": "iVBORw0...", "caption": "a road"}]}`; a caption may be left out.

MLflow's commands have no `--plugin`: what a run uses of a plugin is named by SEMIDAVIL_PLUGINS=my.py.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from semidavil.data.files import DataError
from semidavil.data.images import read_upright, upright_of
from semidavil.names import WEIGHTS
from semidavil.plugin_files import installed, read
from semidavil.plugins import use

if TYPE_CHECKING:
    from semidavil.experiments.predictor import Predictor

ENCODINGS = ("array", "png")  # of labels and confidence
# Of the environment: paths of plugins, apart as those of PATH are.
PLUGINS_VARIABLE = "SEMIDAVIL_PLUGINS"


class ServedSegmenter:
    """Rows of pictures to rows of labels.

    Args:
        predictor: of the run.
        plugins: those that are in use as long as the model is there.
    """

    def __init__(self, predictor: "Predictor", plugins: ExitStack) -> None:
        self.predictor, self.plugins = predictor, plugins

    def predict(self, data: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row for each of the column `image`, with the captions of the column `caption`, where it has one.

        Args:
            params: `encoding`: "array", or "png" for what is as small as files are: labels as an 8-bit PNG of
                class ids, confidence as one from 0 to 255.

        Returns:
            labels (H, W) uint8, confidence (H, W) float32, classes (the names of the ids), caption.

        Raises:
            MlflowException: an image cannot be read; a server answers that the request is bad.
        """
        encoding = (params or {}).get("encoding", ENCODINGS[0])
        if encoding not in ENCODINGS:
            raise _bad(f"encoding={encoding!r} is not known: choose from {', '.join(ENCODINGS)}")
        rows = []
        for number, row in enumerate(data.to_dict("records")):
            try:
                image = image_of(row["image"])
            except (DataError, ValueError) as error:
                raise _bad(f"image {number}: {error}") from error
            caption = row.get("caption")
            seen = self.predictor(image, caption if isinstance(caption, str) else None)
            labels: np.ndarray | bytes = seen.labels
            confidence: np.ndarray | bytes = seen.confidence
            if encoding == "png":
                labels = _png(seen.labels)
                confidence = _png((255 * seen.confidence).round().astype(np.uint8))
            rows.append({
                "labels": labels, "confidence": confidence,
                "classes": list(self.predictor.benchmark.classes),
                "caption": " | ".join(seen.captions),
            })  # fmt: skip
        return pd.DataFrame(rows)


def image_of(given: Any) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB: from a file's contents, these in base64, its pixels, or a `Path`.

    Text is never a path: whoever asks a server would read its disk.

    Raises:
        DataError, ValueError: it is none of these.
    """
    if isinstance(given, Path):
        return read_upright(given)
    if isinstance(given, str):
        try:
            given = base64.b64decode(given.partition("base64,")[2] or given, validate=True)
        except binascii.Error:
            raise ValueError(
                "text is read as base64 of a file's contents, which this is not; in Python, give a "
                "pathlib.Path or bytes"
            ) from None
    if isinstance(given, bytes | bytearray):
        return upright_of(bytes(given))
    pixels = np.asarray(given)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"pixels must be (height, width, 3) RGB, these are {pixels.shape}")
    if pixels.dtype != np.uint8:
        whole = np.issubdtype(pixels.dtype, np.integer)
        if not whole or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError("pixels must be whole numbers from 0 to 255")
    return pixels.astype(np.uint8)


def _png(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def _bad(why: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(why)


def _load_pyfunc(path: str, config: Mapping[str, Any]) -> ServedSegmenter:
    """What MLflow calls with the model's folder, and with what its MLmodel says and the caller has changed.

    Weights in the folder itself come first: a folder that was exported needs no tracking store.
    """
    from semidavil.experiments.predictor import Predictor, PredictorError

    weights = Path(path) / WEIGHTS
    if not weights.is_file():
        weights = Path(_of_run(config["run_id"]))
    paths = filter(None, os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep))
    with ExitStack() as plugins:  # of a model that cannot be loaded, none stays in use
        plugins.enter_context(use(*installed(), *map(read, paths)))
        try:
            predictor = Predictor.load(weights, config["device"])
        except PredictorError as error:
            raise MlflowException(
                f"{error} (plugins of a served model: {PLUGINS_VARIABLE}=FILE, in the environment)"
            ) from error
        return ServedSegmenter(predictor, plugins.pop_all())


def _of_run(run_id: str) -> str:
    try:
        return mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=WEIGHTS)
    except (MlflowException, OSError) as error:
        raise MlflowException(
            f"the weights of this model are {WEIGHTS} of the run {run_id}, which is not in "
            f"{mlflow.get_tracking_uri()}: set MLFLOW_TRACKING_URI ({error})"
        ) from error
