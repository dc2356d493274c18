"""A finished run as a model of MLflow: `mlflow.pyfunc.load_model("runs:/RUN_ID/segmenter")`.

The model is a file of a kilobyte that names code of this package and the run; the weights stay the run's own
artifact, so that no run keeps them twice. Measured with SQLite and local artifacts, data sets
included: 60 ms of a processor and a file of 0.9 kB a run.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import add_to_model
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, ConfigError
from sweeps.track.datasets import datasets_of
from sweeps.track.retry import StoreRefused
from sweeps.track.runs import FINAL, PREFIX
from sweeps.track.store import Store

NAME = "segmenter"  # of each run's model
LOADER = "sweeps.serving"  # whose `_load_pyfunc` MLflow calls
KIND = "semantic-segmentation"
# Settings by which models are told apart in MLflow's table of them; a run's params have all.
TOLD_APART = (
    "data.benchmark", "data.budget", "training.method", "model.fusion", "model.vlm",
    "model.encoder", "loss.name", "seed",
)  # fmt: skip

logger = logging.getLogger(__name__)


def describe(
    store: Store, run_id: str, values: Mapping[str, float], step: int, time: int, trained: bool
) -> None:
    """Logs a run's data sets and, of one that has `trained` a network of images, its model.

    Repeating it changes nothing. A store that refuses, such as a server of MLflow 2, costs the run neither
    its numbers nor its files.

    Args:
        values: final metrics, of `step`; `time` in ms since 1970.

    Raises:
        StoreAway, RunGone.
    """
    try:
        run = store.call(lambda client: client.get_run(run_id))
        config = Config.from_params(run.data.params)
        if inputs := datasets_of(config, run.data.tags.get(f"{PREFIX}data", "")):
            store.call(lambda client: client.log_inputs(run_id, inputs))
        if trained and BENCHMARKS[config.data.benchmark].kind == "images":
            _log_model(store, run, config, values, step, time)
    except (ConfigError, StoreRefused) as error:
        logger.warning("the run has no model or data sets in MLflow: %s", error)


def _log_model(
    store: Store, run: Run, config: Config, values: Mapping[str, float], step: int, time: int
) -> None:
    run_id, experiment = run.info.run_id, run.info.experiment_id
    params = config.to_params()

    def create(client: MlflowClient) -> LoggedModel:
        found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
        if found:  # by an attempt that was cut short, or whose answer was lost
            return found[0]
        told_apart = {name: params[name] for name in TOLD_APART if params[name]}
        tags = {f"{PREFIX}key": config.key()}
        return client.create_logged_model(experiment, NAME, run_id, tags, told_apart, KIND)

    model = store.call(create)
    if model.status == LoggedModelStatus.READY:
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), run_id, model.model_id)
        # Each place for artifacts has errors of its own.
        store.patience.call(
            lambda: store.client.log_model_artifacts(model.model_id, scratch), errors=(Exception,)
        )

    def connect(client: MlflowClient) -> None:
        """The run with its model, and this with its score; neither call may be repeated."""
        if not client.get_run(run_id).outputs.model_outputs:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        name = FINAL + BENCHMARKS[config.data.benchmark].metric
        known = client.get_logged_model(model.model_id).metrics or []
        if name in values and name not in {metric.key for metric in known}:
            score = Metric(name, values[name], time, step, model_id=model.model_id, run_id=run_id)
            client.log_batch(run_id, [score], [], [], synchronous=True)

    store.call(connect)
    store.call(lambda client: client.finalize_logged_model(model.model_id, "READY"))


def write_model(folder: Path, run_id: str, model_id: str | None = None) -> None:
    """The file MLmodel, by which MLflow knows what loads the model and what it takes and returns."""
    takes = [ColSpec(AnyType(), "image"), ColSpec("string", "caption", required=False)]
    returns = [ColSpec(AnyType(), name) for name in ("labels", "confidence", "classes")]
    signature = ModelSignature(
        Schema(takes),
        Schema([*returns, ColSpec("string", "caption")]),
        ParamSchema([ParamSpec("encoding", "string", "array")]),
    )
    model = Model(run_id=run_id or None, model_id=model_id, signature=signature)
    add_to_model(model, LOADER, model_config={"run_id": run_id, "device": "auto"})
    model.save(str(folder / "MLmodel"))
