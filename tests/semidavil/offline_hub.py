"""The Hugging Face cache of a machine without network."""

from pathlib import Path

import pytest


class OfflineHub:
    """An empty cache at `folder`, and nothing to download from."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(self, repository: str, file: Path) -> None:
        """The file, as a download of it leaves the cache."""
        folder = self.folder / f"models--{repository.replace('/', '--')}"
        commit = "a" * 40
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / file.name).symlink_to(file)
