"""What describes images: CLIP's own patches, fixed texts, or captioning models of Hugging Face."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from semidavil.caption_store import CaptionError, hash_files
from semidavil.encoders import VLM

Size = tuple[int, int]
WEIGHT_SUFFIXES = (".safetensors", ".bin")


class Captioner(Protocol):
    """Images to captions. Captioners of equal identity give an image the same caption."""

    identity: str
    size: Size | None  # (height, width) that images are resized to; None: as they are

    def __call__(self, images: Sequence[Image.Image]) -> list[str]: ...


class Constant:
    """The same text for every image."""

    size: Size | None = None

    def __init__(self, text: str) -> None:
        self.text = text
        self.identity = f"constant {text}"

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return [self.text] * len(images)


class Positions:
    """What CLIP sees in an image, and where: zero-shot labels of its patches put into words.

    "a street scene with road at the bottom, building on the left and right, sky at the top". A
    stand-in for a captioner such as the paper's BLIP-2, which describes content and positions too.
    Classes are named in order of their area; the smallest are left out where the text encoder's
    context is short.

    Args:
        classes: names to look for.
        size: images are resized to this height and width, in pixels.
    """

    VERSION = 1  # raise it when the same image would get another caption
    TEMPLATES = (
        "a photo of a {}",
        "a picture of the {}",
        "a {} in a street scene",
        "a rendered {} in a street scene",
    )
    MIN_SHARE = 0.01  # of the image's area; smaller classes are more often noise than there

    def __init__(self, vlm: VLM | None, classes: Sequence[str], size: Size | None = None) -> None:
        if vlm is None:
            raise CaptionError("the captioner positions looks at images through a VLM: pass one")
        self.vlm, self.classes = vlm, list(classes)
        self.size: Size | None = _whole_patches(size or _default_size(vlm), vlm.vision.stride)
        self.identity = f"positions {self.VERSION} {self.size} {self.classes} {vlm.fingerprint()}"
        prompts = [[template.format(name) for template in self.TEMPLATES] for name in classes]
        self.text = class_embeddings(vlm, prompts)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        stacked = np.stack([np.asarray(image) for image in images])
        batch = torch.from_numpy(stacked).to(self.vlm.device).permute(0, 3, 1, 2).float() / 255
        with _evaluating(self.vlm.vision):
            embeddings = self.vlm.vision.embed(batch)
        scores = torch.einsum("behw,ce->bchw", embeddings.float(), self.text.to(embeddings.device))
        # The most likely class under softmax(logit scale * cosine), whatever the scale.
        found = scores.argmax(1)
        masks = F.one_hot(found, len(self.classes)).float()  # (B, h, w, C)
        rows = thirds(masks.mean(2)).cpu().numpy()  # (B, 3, C): shares of the image's area
        columns = thirds(masks.mean(1)).cpu().numpy()
        described = [
            phrases(self.classes, *shares, self.MIN_SHARE)
            for shares in zip(rows, columns, strict=True)
        ]
        return self._fit(described)

    def _fit(self, captions: list[list[str]]) -> list[str]:
        """Sentences, each short enough for the text encoder."""
        texts = [sentence(parts) for parts in captions]
        limit = self.vlm.text.max_tokens
        for index, count in enumerate(self.vlm.text.count_tokens(texts)):
            parts = captions[index]
            while count > limit and parts:
                parts = parts[:-1]
                texts[index] = sentence(parts)
                (count,) = self.vlm.text.count_tokens([texts[index]])
        return texts


def class_embeddings(vlm: VLM, prompts: Sequence[Sequence[str]]) -> Tensor:
    """(C, e): the L2-normalised mean of each class's L2-normalised prompt embeddings."""
    return torch.stack([F.normalize(vlm.text.embed(texts).mean(0), dim=-1) for texts in prompts])


def sentence(parts: Sequence[str]) -> str:
    """The caption of phrases such as "road at the bottom", the most important first."""
    return f"a street scene with {', '.join(parts)}" if parts else "a street scene"


def phrases(
    classes: Sequence[str], rows: np.ndarray, columns: np.ndarray, min_share: float
) -> list[str]:
    """Classes with their places, the largest first.

    Args:
        rows, columns: (3, C) shares of the image's area by third.
        min_share: classes of a smaller area are left out.
    """
    shares = rows.sum(0)
    order = sorted(range(len(shares)), key=lambda index: (-shares[index], index))
    return [
        f"{classes[index]} {describe_place(rows[:, index], columns[:, index])}"
        for index in order
        if shares[index] >= min_share
    ]


def thirds(shares: Tensor) -> Tensor:
    """Shares (B, 3, C) of the first, middle and last third in the mean of (B, n, C) over n."""
    count = shares.shape[1]
    edges = torch.arange(count + 1, device=shares.device) / count * 3
    low, high = edges[:-1, None], edges[1:, None]
    third = torch.arange(3, device=shares.device)[None]
    overlap = (torch.minimum(high, third + 1) - torch.maximum(low, third)).clamp(min=0)
    return torch.einsum("nt,bnc->btc", overlap / (high - low) / count, shares)


def describe_place(rows: np.ndarray, columns: np.ndarray) -> str:
    """Where a class lies, from its area in the thirds from top to bottom and from left to right."""
    top, _, bottom = rows / rows.sum()
    left, centre, right = columns / columns.sum()
    if min(left, centre, right) >= 0.15:  # it spans the image: say how high
        if abs(top - bottom) < 0.25:
            return "in the centre"
        return "at the top" if top > bottom else "at the bottom"
    if min(left, right) >= 0.25:
        return "on the left and right"
    if max(left, right) >= 0.5:
        return "on the left" if left > right else "on the right"
    return "in the centre"


def _default_size(vlm: VLM) -> Size:
    """The size that the VLM was trained at, twice as wide where that is square, as streets are."""
    height, width = vlm.vision.native_size
    return (height, 2 * width) if height == width else (height, width)


def _whole_patches(size: Size, stride: int) -> Size:
    height, width = (max(1, round(side / stride)) * stride for side in size)
    return height, width


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class Pretrained:
    """A captioning model of Hugging Face transformers, decoded greedily, without a prompt.

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
        self.folder = _find_model(kind, name)
        files = sorted(p for p in self.folder.iterdir() if p.suffix in (*WEIGHT_SUFFIXES, ".json"))
        marks = "".join(hash_files(files, memo).values())
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


def _find_model(kind: str, name: str) -> Path:
    """A model's folder: the one given, the hub's cache, or a download."""
    from huggingface_hub import snapshot_download

    folder = Path(name).expanduser()
    if folder.is_dir():
        if _is_complete(folder):
            return folder
        raise CaptionError(f"{folder} holds no model: config.json and weights are missing there")
    if not name or name.count("/") > 1 or folder.is_absolute():
        raise CaptionError(f"{kind}:{name} names neither a folder nor a model of the hub")
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if _is_complete(folder):
            return folder
    except Exception:  # not in the cache
        pass
    try:
        unwanted = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "onnx/*"]
        return Path(snapshot_download(name, ignore_patterns=unwanted, etag_timeout=5))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CaptionError(
            f"the captioner {kind}:{name} is not here and cannot be downloaded ({reason}). On a "
            f"machine with network access: `hf download {name} --local-dir DIR`; copy DIR here and "
            f"pass --set model.captions={kind}:DIR"
        ) from error


def _is_complete(folder: Path) -> bool:
    weights = any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir())
    return weights and (folder / "config.json").is_file()


@dataclass(frozen=True)
class Setting:
    """What a captioner may draw on."""

    vlm: VLM | None
    classes: Sequence[str]
    size: Size | None  # (height, width) that `positions` works at; None: the VLM's own
    device: torch.device  # of the captioners that are not the VLM
    memo: Path  # remembers the hashes of model files


CAPTIONERS: dict[str, Callable[[str, Setting], Captioner]] = {
    "positions": lambda _, setting: Positions(setting.vlm, setting.classes, setting.size),
    "class_names": lambda _, setting: Constant(", ".join(setting.classes)),
    "none": lambda _, setting: Constant(""),
    "blip": lambda name, setting: Pretrained("blip", name, setting.device, setting.memo),
    "blip2": lambda name, setting: Pretrained("blip2", name, setting.device, setting.memo),
    "hf": lambda name, setting: Pretrained("hf", name, setting.device, setting.memo),
}
# Not captioners: they take captions from other images or from labels (`caption_ablation`).
ABLATIONS = SHUFFLED, ORACLE = "shuffled", "oracle"


def build_captioner(name: str, setting: Setting) -> Captioner:
    """The captioner called `name`, such as "positions" or "blip2:Salesforce/blip2-opt-2.7b".

    Raises:
        CaptionError: an unknown name, or a model that is not here.
    """
    kind, _, argument = name.partition(":")
    if kind not in CAPTIONERS or bool(argument) != (kind in Pretrained.MODELS):
        known = [f"{each}:NAME" if each in Pretrained.MODELS else each for each in CAPTIONERS]
        raise CaptionError(
            f"unknown captioner {name!r}: choose from {', '.join(known)}, NAME being a Hugging "
            "Face model or its folder"
        )
    return CAPTIONERS[kind](argument, setting)
