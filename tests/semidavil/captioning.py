"""Captions of whole images by a captioner's name, as many tests ask for them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from semidavil.language.captioners import Setting, build_captioner
from semidavil.language.captions import caption_images
from semidavil.models.vlm import VLM


def captions_of(
    paths: Sequence[Path],
    name: str,
    vlm: VLM | None,
    classes: Sequence[str],
    cache_dir: Path,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
    prompt: str = "",
) -> dict[Path, str]:
    setting = Setting(vlm, classes, size, torch.device("cpu"), cache_dir / "hashes.jsonl", prompt)
    captions = caption_images(
        paths, build_captioner(name, setting), cache_dir, batch_size=batch_size
    )
    return {path: caption.texts[0] for path, caption in captions.items()}
