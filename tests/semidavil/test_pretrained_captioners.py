"""Captioning models of transformers, built and saved in their real format."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from captioning import captions_of
from huggingface_hub.errors import GatedRepoError
from png_files import write_images
from slow_cases import also_slow
from small_captioners import git, save
from tokenizers import Tokenizer, models, pre_tokenizers

from semidavil.language.captioners import CAPTIONERS, CaptionError
from semidavil.language.pretrained import Pretrained

CLASSES = ("road", "sky", "car", "building")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>", *(f"word{i}" for i in range(54))]


def bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizerFast(str(folder / "vocab.txt"))


def word_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[CLS]",
        eos_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "encoder_hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}


def save_blip(folder: Path) -> None:
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    config = BlipConfig(vision_config=VISION, text_config={**TEXT, **SPECIAL})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, bert_tokenizer(folder)).save_pretrained(folder)


def save_blip2(folder: Path) -> None:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        OPTConfig,
    )

    opt = OPTConfig(
        vocab_size=len(WORDS), hidden_size=16, ffn_dim=16, num_hidden_layers=1,
        num_attention_heads=2, word_embed_proj_dim=16, max_position_embeddings=96,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**TEXT, "cross_attention_frequency": 1},
        text_config=opt.to_dict(),
        num_query_tokens=4,
        image_token_index=WORDS.index("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    Blip2Processor(images, word_tokenizer(), num_query_tokens=4).save_pretrained(folder)


def save_vit_gpt2(folder: Path) -> None:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    gpt2 = GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64,
        bos_token_id=2, eos_token_id=3, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    model = VisionEncoderDecoderModel(
        encoder=ViTModel(ViTConfig(**VISION)), decoder=GPT2LMHeadModel(gpt2)
    )
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def save_git(folder: Path) -> None:
    save(git, folder)


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("blip", save_blip), ("hf", save_git),
        *also_slow(
            ("hf", save_blip), ("blip2", save_blip2), ("hf", save_blip2), ("hf", save_vit_gpt2)
        ),
    ],
)  # fmt: skip
def test_captioning_models_in_their_real_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, save: Any
) -> None:
    torch.manual_seed(0)
    save(tmp_path / "model")
    paths = write_images(tmp_path / "images", 3)
    name, cache = f"{kind}:{tmp_path / 'model'}", tmp_path / "cache"
    first = captions_of(paths, name, None, CLASSES, cache, batch_size=2)
    assert all("word" in text for text in first.values())
    # Greedy decoding: the same captions in another batch, and nothing random.
    alone = captions_of(paths[2:], name, None, CLASSES, tmp_path / "other")
    assert alone == {paths[2]: first[paths[2]]}
    monkeypatch.setattr(Pretrained, "_load", None)  # captions on disk need no model
    assert captions_of(paths, name, None, CLASSES, cache) == first
    config = tmp_path / "model" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "repetition_penalty": 2.0}))
    with pytest.raises(TypeError):  # another model: its captions are not on disk
        captions_of(paths, name, None, CLASSES, cache)


@pytest.mark.usefixtures("offline_hub")
def test_a_missing_captioning_model_names_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(CaptionError) as raised:
        captions_of([], "blip2:Salesforce/blip2-opt-2.7b", None, CLASSES, tmp_path / "cache")
    for part in (
        "blip2:Salesforce/blip2-opt-2.7b",
        "hf download Salesforce/blip2-opt-2.7b --local-dir DIR",
        "--set model.captions=blip2:DIR",
        "--set model.captions=positions",
    ):
        assert part in str(raised.value)


def test_a_model_behind_terms_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, **_: Any) -> None:
        answer = MagicMock(headers={})  # of an HTTP client that is another one in each release
        raise GatedRepoError("401 Client Error.", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        CaptionError, match=r"https://huggingface.co/google/gemma-3-4b-it, then `hf a"
    ):
        captions_of([], "hf:google/gemma-3-4b-it", None, CLASSES, tmp_path / "cache")


def test_a_wrong_model_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"config\.json and weights are missing"):
        captions_of([], f"blip:{tmp_path}", None, CLASSES, tmp_path / "cache")
    with pytest.raises(CaptionError, match="neither a folder nor a model of the hub"):
        captions_of([], f"blip:{tmp_path}/none", None, CLASSES, tmp_path / "cache")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    paths = write_images(tmp_path / "images", 1)
    with pytest.raises(CaptionError, match=r"cannot be loaded from"):
        captions_of(paths, f"blip:{tmp_path}", None, CLASSES, tmp_path / "cache")


def test_the_tables_name_what_exists() -> None:
    import transformers

    assert set(Pretrained.MODELS) < set(CAPTIONERS)
    for name in Pretrained.MODELS.values():
        assert hasattr(transformers, name)
