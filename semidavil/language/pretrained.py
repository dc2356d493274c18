"""Captioning models of Hugging Face transformers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from semidavil.data.files import DataError, hash_files
from semidavil.data.hub import find_model, model_files
from semidavil.language.base import CaptionError, Size


class Pretrained:
    """A captioning model of Hugging Face transformers, decoded greedily, without a prompt.

    The paper captions with BLIP-2 (Li et al., ICML 2023). Its released code does so with
    `Salesforce/blip2-opt-2.7b`, without a prompt, and captions the augmented crop in every step;
    here each image or window is captioned once, before it is augmented.

    Loaded at the first image, so that captions which are on disk need no model.

    Args:
        kind: key of `MODELS`.
        name: a folder, or a model of the hub: taken from the local cache, else downloaded.
        device: where it runs; bfloat16 on a GPU.
        memo: remembers the hashes of the model's files.
    """

    MODELS = {  # noqa: RUF012
        "blip": "BlipForConditionalGeneration",
        "blip2": "Blip2ForConditionalGeneration",
        "hf": "AutoModelForImageTextToText",  # also BLIP, GIT, vision-encoder-decoder, ...
    }
    MAX_NEW_TOKENS = 40
    size: Size | None = None

    def __init__(self, kind: str, name: str, device: torch.device, memo: Path) -> None:
        self.kind, self.name, self.device = kind, name, device
        try:
            self.folder = find_model(
                name, f"the captioner {kind}:{name}", f"model.captions={kind}:DIR"
            )
        except DataError as error:
            raise CaptionError(
                f"{error}. To caption with CLIP itself instead, which needs no other model: --set "
                "model.captions=positions"
            ) from error
        marks = "".join(hash_files(model_files(self.folder), memo).values())
        digest = hashlib.blake2b(marks.encode(), digest_size=16).hexdigest()
        self.identity = f"{kind} {digest} {self.MAX_NEW_TOKENS}"
        self.model: Any = None

    def _load(self) -> None:
        import transformers

        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            model_class = getattr(transformers, self.MODELS[self.kind])
            self.model = (
                model_class.from_pretrained(self.folder, dtype=dtype).to(self.device).eval()
            )
            if (self.folder / "tokenizer_config.json").exists() and not _is_processor(self.folder):
                # Vision-encoder-decoder models ship both halves of a processor, but none.
                self.images = transformers.AutoImageProcessor.from_pretrained(self.folder)
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
            else:
                processor = transformers.AutoProcessor.from_pretrained(self.folder)
                self.images, self.tokenizer = processor.image_processor, processor.tokenizer
        except Exception as error:
            raise CaptionError(
                f"{self.kind}:{self.name} cannot be loaded from {self.folder} ({error}): it must "
                f"hold a model that transformers opens as {self.MODELS[self.kind]}, with its "
                "image processor and tokenizer"
            ) from error

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        if self.model is None:
            self._load()
        pixels = self.images(images=list(images), return_tensors="pt")["pixel_values"]
        ids = self.model.generate(
            pixel_values=pixels.to(self.device, self.model.dtype),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.MAX_NEW_TOKENS,
        )
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _is_processor(folder: Path) -> bool:
    """Whether the folder names a processor class, which holds image processor and tokenizer."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        file = folder / name
        if file.exists() and "processor_class" in json.loads(file.read_text(encoding="utf-8")):
            return True
    return False
