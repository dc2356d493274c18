"""Tiny CLIPs, saved in the real format."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SENTENCE = "a street scene with road car sky at the top bottom on left and right in centre , ."
WORDS = SENTENCE.split()
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def clip_config(**changes: Any) -> dict[str, Any]:
    """A tiny CLIP; names starting with `v_` or `t_` change a tower's part."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}
    text = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
    config: dict[str, Any] = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
    for name, value in changes.items():
        part = {"v_": vision, "t_": text}.get(name[:2])
        config.update({name: value}) if part is None else part.update({name[2:]: value})
    return config


RESNET = {
    "v_layers": [1, 1, 1, 1],
    "v_width": 8,
    "v_image_size": 64,
    "v_head_width": 16,
    "v_patch_size": 32,
}


def word_tokenizer(folder: Path) -> None:
    vocabulary = ["<pad>", "<unk>", *WORDS, "<bos>", "<eos>"]
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", ids["<bos>"]), ("<eos>", ids["<eos>"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def save_clip(folder: Path, weights: str = "open_clip_model.safetensors", **changes: Any) -> Any:
    """A random CLIP in open_clip's local layout; returns open_clip's model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = clip_config(**changes)
    preprocess = {"mean": MEAN, "std": STD}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    if "hf_tokenizer_name" in config["text_cfg"]:
        word_tokenizer(folder)
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in model.parameters():  # normalisations and biases too must not be 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save({"state_dict": state, "epoch": 3}, folder / weights)
    return model.eval()
