"""The bundled CLIP is a real, pre-trained open_clip model."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from semidavil.language.positions import STREET
from semidavil.toy.clip import pretrain

FOLDER = Path(pretrain.__file__).parent


def test_the_folder_is_small_and_holds_safetensors_alone() -> None:
    files = [p for p in FOLDER.iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8 * 2**20
    assert {p.suffix for p in files} == {".py", ".md", ".json", ".safetensors"}


def test_open_clip_loads_it_by_itself() -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    text = model.encode_text(tokenize(["a photo of a car", "a photo of the sky"]))
    image = model.encode_image(torch.rand(1, 3, 64, 64))
    assert text.shape == (2, 64)
    assert image.shape == (1, 64)


def test_every_word_of_prompts_and_captions_is_known() -> None:
    tokenizer = pretrain.build_tokenizer()
    words = " ".join(
        [
            *pretrain.CITYSCAPES_19,
            *(template.format("car", STREET) for template in pretrain.TEMPLATES),
            "a street scene with road at the bottom, building on the left and right, in the centre",
        ]
    )
    assert tokenizer.unk_token_id not in tokenizer(words)["input_ids"]
    assert tokenizer.eos_token_id == len(tokenizer) - 1  # where CLIP pools


@pytest.mark.slow
def test_zero_shot_retrieval_and_patch_labels_are_far_above_chance() -> None:
    scores = pretrain.zero_shot(FOLDER, count=150)
    assert scores["retrieval_at_1"] > 15  # chance: 1
    assert scores["patch_accuracy"] > scores["majority_accuracy"] + 10
    assert scores["patch_recall"] > 14  # chance: 5.3


@pytest.mark.slow
def test_the_published_scores_are_those_of_the_bundled_weights() -> None:
    stored = json.loads((FOLDER / "results.json").read_text())
    measured = pretrain.zero_shot(FOLDER)
    for name in ("retrieval_at_1", "patch_accuracy", "patch_recall"):
        assert measured[name] == pytest.approx(stored[name], abs=2.0)
