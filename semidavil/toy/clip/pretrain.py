"""Pre-trains the bundled miniature CLIP, contrastively, on captioned toy scenes.

    python -m semidavil.toy.clip.pretrain [--steps 1000] [--out DIR]

As CLIP saw the web before any benchmark, this model sees all three looks of the toy world, in scenes
that belong to no split (their random seeds are never used by `semidavil.toy.write`), each with an
alt-text made from what is in the crop. Labels of benchmark images are never seen. Writes an
open_clip folder: configuration, weights (safetensors), tokenizer; and `results.json`, zero-shot
scores on held-out scenes.
"""

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from open_clip.loss import ClipLoss
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from semidavil.benchmarks import CITYSCAPES_19, LABEL_IDS
from semidavil.language.mirror import flip_caption
from semidavil.language.positions import STREET, Positions, describe_place, sentence
from semidavil.toy.scenes import render_scene
from semidavil.toy.styles import LOOKS, Look

HERE = Path(__file__).parent
PRETRAINING, HELD_OUT = 1_000_003, 1_000_033  # seed families that no benchmark split uses
CROP = 64  # pixels; the tower's native size
NUM_CLASSES = len(CITYSCAPES_19)

SYNONYMS = {
    "road": ("street",), "sidewalk": ("pavement",), "building": ("house",), "person": ("pedestrian",),
    "vegetation": ("tree", "bush"), "terrain": ("grass",), "car": ("vehicle",),
    "bicycle": ("bike",), "motorcycle": ("motorbike",), "rider": ("cyclist",),
    "traffic sign": ("sign",), "traffic light": ("signal",), "bus": ("coach",), "train": ("tram",),
    "truck": ("lorry",),
}  # fmt: skip
TEMPLATES = (*Positions.TEMPLATES, "a {}", "the {}", "a photo of the {}", "a {} near the camera")
OTHER_WORDS = (
    "a an the of and with in on at to is there near far small large photo picture image rendered "
    "street scene camera city view left right centre center middle top bottom bicyclist pole , ."
)

MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": CROP, "patch_size": 8, "width": 96, "layers": 4, "head_width": 32,
        "mlp_ratio": 4.0, "pool_type": "avg",
    },
    "text_cfg": {
        "context_length": 64, "width": 64, "heads": 2, "layers": 2,
        "hf_tokenizer_name": "toy-clip", "tokenizer_kwargs": {"clean": "lower"},
    },
}  # fmt: skip
MEAN, STD = (0.45, 0.45, 0.45), (0.22, 0.22, 0.22)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the end token has the largest id, where CLIP's text tower pools."""
    text = " ".join([OTHER_WORDS, *CITYSCAPES_19, *(w for s in SYNONYMS.values() for w in s)])
    words = sorted(set(text.split()))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<start>", *words, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=MODEL["text_cfg"]["context_length"],
    )


def _class_lookup() -> np.ndarray:
    table = np.full(256, NUM_CLASSES, np.int64)
    for raw, name in LABEL_IDS["cityscapes"].items():
        if name:
            table[raw] = CITYSCAPES_19.index(name)
    return table


_LOOKUP = _class_lookup()


class Scenes:
    """Scenes of all looks, and crops of them with an alt-text."""

    def __init__(self, family: int, count: int) -> None:
        self.images, self.labels = [], []
        for index in track(range(count), f"rendering {count} scenes", transient=True):
            look: Look = LOOKS[index % len(LOOKS)]
            scene = render_scene(np.random.default_rng([family, index]), look)
            self.images.append(scene.image)
            self.labels.append(_LOOKUP[scene.label])

    def crop(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """A square crop of 20 to 64 pixels, resized to 64, centred on something: rare or not."""
        index = int(rng.integers(len(self.images)))
        image, label = self.images[index], self.labels[index]
        present = np.flatnonzero(np.bincount(label.ravel(), minlength=NUM_CLASSES)[:NUM_CLASSES])
        places = np.flatnonzero(label == rng.choice(present))
        row, column = divmod(int(rng.choice(places)), label.shape[1])
        side = round(math.exp(rng.uniform(math.log(20), math.log(CROP))))
        top = int(np.clip(row - rng.integers(side), 0, image.shape[0] - side))
        left = int(np.clip(column - rng.integers(side), 0, image.shape[1] - side))
        window = np.s_[top : top + side, left : left + side]
        picture = cv2.resize(image[window], (CROP, CROP), interpolation=cv2.INTER_LINEAR)
        text = describe(label[window], rng)
        if rng.random() < 0.5:
            picture, text = picture[:, ::-1], flip_caption(text)
        return np.ascontiguousarray(picture), text


def describe(label: np.ndarray, rng: np.random.Generator) -> str:
    """An alt-text of what a label map (h, w) of class indices holds, as somebody might put it."""
    third = [np.arange(length) * 3 // length for length in label.shape]
    cell = third[0][:, None] * 3 + third[1]
    flat = (cell * (NUM_CLASSES + 1) + label).ravel()
    counts = np.bincount(flat, minlength=9 * (NUM_CLASSES + 1)).reshape(3, 3, NUM_CLASSES + 1)
    rows, columns = counts.sum(1) / label.size, counts.sum(0) / label.size
    shares = rows.sum(0)[:NUM_CLASSES]
    shares = shares / max(shares.sum(), 1e-9)
    seen = [int(c) for c in np.argsort(-shares) if shares[c] >= 0.02]
    if not seen:
        return "a street scene"
    kind = rng.random()
    if kind < 0.35 and shares[seen[0]] > 0.4:
        return str(rng.choice(TEMPLATES)).format(_word(seen[0], rng), STREET)
    kept = [c for c in seen if rng.random() < 0.9] or seen[:1]
    if kind < 0.6:
        return f"a photo of {' and '.join('a ' + _word(c, rng) for c in kept)}"
    places = [f"{_word(c, rng)} {describe_place(rows[:, c], columns[:, c])}" for c in kept]
    return sentence(places)


def _word(index: int, rng: np.random.Generator) -> str:
    name = CITYSCAPES_19[index]
    return str(rng.choice(SYNONYMS[name])) if name in SYNONYMS and rng.random() < 0.15 else name


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random gain, contrast and colour cast of images (B, 3, h, w) in [0, 1]."""
    count = len(images)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.85, 1.15, generator=generator)
    light = torch.empty(count, 1, 1, 1).uniform_(-0.12, 0.12, generator=generator)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.75, 1.25, generator=generator)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * gain + light).clamp(0, 1)


def normalise(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def main(
    steps: Annotated[int, typer.Option(help="Optimisation steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Image-text pairs a step.")] = 160,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 1.5e-3,
    scenes: Annotated[int, typer.Option(help="Scenes to draw crops from.")] = 3600,
    seed: Annotated[int, typer.Option(help="Fixes everything.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = HERE,
) -> None:
    """Trains, saves and evaluates the miniature CLIP."""
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng([seed, PRETRAINING])
    tokenizer = build_tokenizer()
    config = json.loads(json.dumps(MODEL))
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"}
    description = {"model_cfg": config, "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(description, indent=2) + "\n")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")

    model = open_clip.CLIP(**config)
    loss = ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.98))
    world = Scenes(PRETRAINING, scenes)
    started, running = time.perf_counter(), 0.0
    for step in track(range(steps), "pre-training"):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 60)
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        pictures, texts = zip(*(world.crop(rng) for _ in range(batch_size)), strict=True)
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        image_features = model.encode_image(normalise(augment(images, generator)), normalize=True)
        text_features = model.encode_text(tokenize(list(texts)), normalize=True)
        value = loss(image_features, text_features, model.logit_scale.exp())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        running = value.item() if step == 0 else 0.98 * running + 0.02 * value.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {running:.3f}", flush=True)
    seconds = time.perf_counter() - started

    save_file(model.state_dict(), out / "open_clip_model.safetensors")
    results = {
        "steps": steps, "batch_size": batch_size, "scenes": scenes, "seed": seed,
        "minutes": round(seconds / 60, 1), "threads": torch.get_num_threads(),
        "loss": round(running, 3), **zero_shot(out),
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def zero_shot(folder: Path, count: int = 300) -> dict[str, float]:
    """Zero-shot scores of the model in `folder` on held-out scenes, all in per cent.

    `retrieval_at_1`: the caption of an image among those of 100 (chance 1). `patch_accuracy` and
    `patch_recall`: pixels of the camera look labelled by the nearest class prompt, over all and as
    the mean over classes (chance 5.3 for the latter; the most common class gives
    `majority_accuracy` for the former).
    """
    from semidavil.models.vlm import load_vlm

    vlm = load_vlm(str(folder), "bundled")
    world = Scenes(HELD_OUT, count)
    rng = np.random.default_rng([0, HELD_OUT])
    pairs = [world.crop(rng) for _ in range(600)]
    unique = list({text: picture for picture, text in pairs}.items())[:100]
    images = torch.from_numpy(np.stack([picture for _, picture in unique]))
    with torch.inference_mode():
        dense = vlm.vision.embed(images.permute(0, 3, 1, 2).float() / 255)
        found = F.normalize(dense.mean((2, 3)), dim=-1) @ vlm.text.embed([t for t, _ in unique]).T
        prompts = Positions(vlm, CITYSCAPES_19).text
        confusion = torch.zeros(NUM_CLASSES, NUM_CLASSES)
        for image, label in zip(world.images[::3], world.labels[::3], strict=True):
            scores = vlm.vision.embed(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
            scores = torch.einsum("behw,ce->bchw", scores, prompts)
            scores = F.interpolate(scores, label.shape, mode="bilinear", align_corners=False)
            valid = torch.from_numpy(label) < NUM_CLASSES
            truth, guess = torch.from_numpy(label)[valid], scores.argmax(1)[0][valid]
            confusion += (
                (truth * NUM_CLASSES + guess)
                .bincount(minlength=NUM_CLASSES**2)
                .view(NUM_CLASSES, NUM_CLASSES)
            )
    totals = confusion.sum(1)
    right = found.argmax(1) == torch.arange(len(unique))
    shares = {
        "retrieval_at_1": right.float().mean(),
        "patch_accuracy": confusion.diag().sum() / totals.sum(),
        "patch_recall": (confusion.diag() / totals.clamp(min=1))[totals > 0].mean(),
        "majority_accuracy": totals.max() / totals.sum(),
    }
    return {name: round(100 * float(value), 1) for name, value in shares.items()}


if __name__ == "__main__":
    typer.run(main)
