"""The data sets of a run, as MLflow's column "Dataset" shows them."""

import hashlib
import json

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.streams import streams_of


def datasets_of(config: Config, fingerprint: str) -> list[DatasetInput]:
    """What a run learns from and is scored on, by context: source, labelled, unlabelled, validation.

    A digest is of the files of that split that the run looks at, and of what draws the labelled images among
    them: two runs with one digest saw the same. The profile has the fingerprint's own parts.

    Args:
        fingerprint: see `semidavil.data.fingerprint`; empty, where nothing is known of the files, gives none.
    """
    parts = dict(word.split("=", 1) for word in fingerprint.split() if "=" in word)
    benchmark, streams = BENCHMARKS[config.data.benchmark], streams_of(config)
    drawn = {
        "budget": str(config.data.budget), "seed": str(config.seed),
        "selection": config.data.selection,
    }  # fmt: skip
    if benchmark.kind == "volumes":
        drawn["split"] = config.volumes.split
    found = []
    for context, dataset, split in (
        ("source", benchmark.source, "train"),
        ("labelled", benchmark.target, "train"),
        ("unlabelled", benchmark.target, "train"),
        ("validation", benchmark.target, "val"),
    ):
        empty = context == "labelled" and not config.data.budget
        if dataset is None or empty or context not in {*streams, "validation"}:
            continue
        own = {
            name.rpartition("/")[2]: value
            for name, value in parts.items()
            if name == "generated" or name.startswith((f"{dataset}/{split}/", f"{dataset}/scans"))
        }
        if context == "unlabelled":
            own.pop("labels", None)
            if more := parts.get(f"{dataset}/unlabelled/images"):
                own["images without labels"] = more
        if not own:
            continue
        profile = own | (drawn if "labelled" in context else {})
        about = json.dumps([dataset, split, context, profile], sort_keys=True)
        found.append(
            DatasetInput(
                Dataset(
                    name=f"{dataset} {split}",
                    digest=hashlib.blake2b(about.encode(), digest_size=8).hexdigest(),
                    source_type="code" if "generated" in own else "local",
                    source=_source(config, dataset, own),
                    profile=json.dumps(profile),
                ),
                [InputTag(MLFLOW_DATASET_CONTEXT, context)],
            )
        )
    return found


def _source(config: Config, dataset: str, parts: dict[str, str]) -> str:
    """As MLflow's sources of these types read it: a folder, or the code that generates."""
    if "generated" in parts:
        return json.dumps({"tags": {"mlflow.source.name": "semidavil.toy", **parts}})
    return json.dumps({"uri": f"{config.runtime.data_root.rstrip('/')}/{dataset}"})
