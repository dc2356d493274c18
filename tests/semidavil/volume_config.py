"""The small Config of tests of volumes."""

from pathlib import Path

from semidavil.config import Config, preset

CLASSES = 14


def config_of(root: Path, **changes: object) -> Config:
    """A UA-MT run on the scans below `root`; `volumes__lr` changes `volumes.lr`."""
    known = {
        "data.benchmark": "synapse", "data.budget": 2, "data.toy": False,
        "training.method": "uamt", "loss.name": "ce", "training.steps": 4,
        "training.warmup_steps": 0, "volumes.width": 4, "runtime.data_root": str(root),
        "runtime.cache_dir": str(root / "cache"),
    }  # fmt: skip
    return preset("toy", known | {k.replace("__", "."): v for k, v in changes.items()})
