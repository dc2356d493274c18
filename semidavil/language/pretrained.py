"""Captioning models of Hugging Face transformers."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from semidavil.data.files import DataError, hash_files
from semidavil.data.hub import find_model, model_files
from semidavil.language.asking import OWN_CODE, answers, model_inputs, question_for, read_json
from semidavil.language.base import CaptionError, Size


class Pretrained:
    """A captioning model of Hugging Face transformers, decoded greedily.

    The paper captions with BLIP-2 (Li et al., ICML 2023). Its released code does so with
    `Salesforce/blip2-opt-2.7b`, without a prompt, and captions the augmented crop in every step;
    here each image or window is captioned once, before it is augmented.

    Loaded at the first image, so that captions which are on disk need no model. Nothing that comes with a
    model is executed: only models that transformers has itself are opened.

    Args:
        kind: key of `MODELS`.
        name: a folder, or a model of the hub: taken from the local cache, else downloaded.
        device: where it runs; bfloat16 on a GPU.
        memo: remembers the hashes of the model's files.
        prompt: what it is asked, if it can be; empty: the default of its family. See `asking`.
        fits: tokens of a caption that the text encoder can read.
    """

    MODELS = {  # noqa: RUF012
        "blip": "BlipForConditionalGeneration",
        "blip2": "Blip2ForConditionalGeneration",
        "hf": "AutoModelForImageTextToText",  # also BLIP, GIT, vision-encoder-decoder, ...
    }
    size: Size | None = None

    def __init__(
        self, kind: str, name: str, device: torch.device, memo: Path, prompt: str, fits: int
    ) -> None:
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
        self.question = question_for(self.folder, kind, f"{kind}:{name}", prompt, fits)
        self.prompt = self.question.prompt
        # The chat template is one of the files.
        marks = "".join(hash_files(model_files(self.folder), memo).values())
        digest = hashlib.blake2b(marks.encode(), digest_size=16).hexdigest()
        self.identity = f"{kind} {digest} {self.question.mark()}"
        self.model: Any = None

    def _load(self) -> None:
        import transformers

        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            if self.kind == "hf":
                self._require_known()
            model_class = getattr(transformers, self.MODELS[self.kind])
            model, found = model_class.from_pretrained(
                self.folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
            _require_weights(found["missing_keys"])
            self.processor = _load_processor(self.folder)
        except Exception as error:
            raise CaptionError(
                f"{self.kind}:{self.name} cannot be loaded from {self.folder} ({error}): it must "
                f"hold a model that transformers opens as {self.MODELS[self.kind]}, with its "
                "image processor and tokenizer"
            ) from error
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # an answer goes on where its question ends
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.model = model.to(self.device).eval()

    def _require_known(self) -> None:
        """Raises ValueError for a model that transformers itself does not have, or not for images."""
        from transformers.models.auto import modeling_auto as auto
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        config = read_json(self.folder / "config.json")
        model_type = config.get("model_type", "")
        if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            return
        if model_type in CONFIG_MAPPING_NAMES:
            raise ValueError(f"{model_type} is no model that says something of images")
        if "auto_map" in config:
            raise ValueError(OWN_CODE)
        raise ValueError(
            f"this version of transformers does not know the model_type {model_type!r} of its config.json"
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        if self.model is None:
            self._load()
        try:
            return self._describe(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        half = len(images) // 2  # images of many tiles are more than a card may hold at once
        return self(images[:half]) + self(images[half:])

    @torch.inference_mode()
    def _describe(self, images: Sequence[Image.Image]) -> list[str]:
        try:
            inputs = model_inputs(self.question, self.processor, images)
            inputs = inputs.to(self.device, self.model.dtype)
            ids = self.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=self.question.tokens
            )
        except ValueError as error:
            raise CaptionError(f"{self.kind}:{self.name} cannot be asked: {error}") from error
        return answers(self.question, self.processor, inputs, ids)


def _load_processor(folder: Path) -> Any:
    """What makes inputs of images and text; offers at least `image_processor` and `tokenizer`."""
    import transformers

    if (folder / "tokenizer_config.json").exists() and not _is_processor(folder):
        # Vision-encoder-decoder models ship both halves of a processor, but none.
        return SimpleNamespace(
            image_processor=transformers.AutoImageProcessor.from_pretrained(
                folder, trust_remote_code=False
            ),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )
    return transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def _require_weights(missing: Collection[str]) -> None:
    """Raises ValueError where a part of the model would stay as it was drawn at random.

    Weights in another layout than transformers' (Florence-2 as its authors publish it) leave nearly all of it
    so, with a warning. Poolers may be missing: no caption is made of what they give.
    """
    lacking = sorted(name for name in missing if "pooler" not in name.split("."))
    if lacking:
        raise ValueError(
            f"{len(lacking)} weights are missing in its files, {lacking[0]} is the first: they have "
            "another layout than transformers', choose a conversion"
        )


def _is_processor(folder: Path) -> bool:
    """Whether the folder names a processor class, which holds image processor and tokenizer."""
    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    return any("processor_class" in read_json(folder / file) for file in files)
