"""Loading a CLIP: architectures, tags, files, folders, and what is said of those that cannot be had."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from offline_hub import OfflineHub
from safetensors.torch import load_file, save_file
from slow_cases import also_slow
from small_clip import MEAN, clip_config, save_clip

from semidavil.models.vlm import VLMError, load_vlm


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pt", "weights.bin"])
def test_local_files_load_into_an_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reference = save_clip(tmp_path / "here", weights=name, quick_gelu=True)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", clip_config())
    loaded = load_vlm("ViT-tiny", str(tmp_path / "here" / name))
    # The configuration beside the file says how it was trained: QuickGELU, mean and std.
    assert loaded.mean == MEAN
    images = torch.rand(1, 3, 32, 32)
    expected = reference.visual.forward_intermediates(
        (images - loaded.vision.mean) / loaded.vision.std,
        indices=1,
        normalize_intermediates=True,
        intermediates_only=True,
    )["image_intermediates"][0]
    torch.testing.assert_close(loaded.vision(images), expected, rtol=0, atol=1e-5)
    moved = (tmp_path / "here" / name).rename(tmp_path / name)
    bare = load_vlm("ViT-tiny", str(moved))  # GELU and OpenAI's mean, as the architecture says
    assert bare.mean == open_clip.OPENAI_DATASET_MEAN
    assert (bare.vision(images) - expected).abs().max() > 1e-3


def test_a_bare_file_of_an_architecture_with_both_activations_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(tmp_path, quick_gelu=True)
    (tmp_path / "open_clip_config.json").unlink()
    file = str(tmp_path / "open_clip_model.safetensors")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16", clip_config())
    with pytest.warns(UserWarning, match=r"model\.vlm=ViT-B-16-quickgelu"):
        load_vlm("ViT-B-16", file)
    quick = clip_config(quick_gelu=True)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16-quickgelu", quick)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_vlm("ViT-B-16-quickgelu", file)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-14", clip_config())
    with pytest.raises(VLMError, match=r"does not say how its images are normalised"):
        load_vlm("ViT-L-14", file)


def test_a_cached_tag_works_without_network_and_brings_its_activation(
    tmp_path: Path, offline_hub: OfflineHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(tmp_path / "clip", quick_gelu=True)
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    offline_hub.add("timm/vit_base_patch16_clip_224.openai", file)
    for name in ("ViT-B-16", "ViT-B-16-quickgelu"):
        config = clip_config(quick_gelu=name.endswith("quickgelu"))
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    openai = load_vlm("ViT-B-16", "openai")
    assert (openai.mean, openai.std) == (
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
    )
    images = torch.rand(1, 3, 32, 32)
    same = load_vlm("ViT-B-16-quickgelu", "openai")
    assert torch.equal(openai.vision(images), same.vision(images))
    assert type(openai.vision.tower.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.usefixtures("offline_hub")
def test_missing_weights_name_the_file_and_what_to_do_with_it() -> None:
    with pytest.raises(VLMError) as raised:
        load_vlm("ViT-B-16", "openai")
    for part in (
        "'openai' of ViT-B-16",
        "timm/vit_base_patch16_clip_224.openai",
        "open_clip_model.safetensors",
        "--set model.weights=",
        "HF_HOME",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("ViT-B16", "openai", r"unknown vision-language model 'ViT-B16'.*ViT-B-16"),
        ("ViT-B-16", "opnai", r"neither a file nor an open_clip tag.*openai, laion"),
        ("ViT-B-16", "/no/such/file.pt", r"neither a file nor an open_clip tag"),
        ("ViT-B-16", "bundled", r"neither a file nor an open_clip tag"),
        *also_slow(
            (
                "vit_relpos_medium_patch16_cls_224",
                "none",
                r"not supported: its .* takes no images of any size",
            ),
        ),
        (
            "ViT-B-16-SigLIP2",
            "none",
            r"tokenizer timm/ViT-B-16-SigLIP2 .*`hf download timm/ViT-B-16-SigLIP2 ",
        ),
        ("coca_ViT-B-32", "none", r"not supported: it is a CoCa"),
        ("roberta-ViT-B-32", "none", r"not supported: its text tower is a Hugging Face"),
    ],
)
def test_wrong_names_are_explained(model: str, weights: str, message: str) -> None:
    with pytest.raises(VLMError, match=message):
        load_vlm(model, weights)


def test_a_file_that_does_not_fit_names_the_first_mismatches(tmp_path: Path, tiny: Any) -> None:
    save_clip(tmp_path / "other", v_width=48)
    file = tmp_path / "other" / "open_clip_model.safetensors"
    with pytest.raises(VLMError, match=r"do not fit .*size mismatch for visual\.") as raised:
        load_vlm(str(tiny.folder), str(file))
    assert len(str(raised.value)) < 1000
    state = load_file(tiny.folder / "open_clip_model.safetensors")
    del state["visual.proj"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(VLMError, match=r"Missing key.*visual\.proj"):
        load_vlm(str(tiny.folder), str(tmp_path / "cut.safetensors"))
    (tmp_path / "garbage.pt").write_bytes(b"not weights")
    with pytest.raises(VLMError, match=r"garbage\.pt"):
        load_vlm(str(tiny.folder), str(tmp_path / "garbage.pt"))
    (tmp_path / "notes.txt").write_text("not weights")
    with pytest.raises(VLMError, match=r"must be a \.safetensors"):
        load_vlm(str(tiny.folder), str(tmp_path / "notes.txt"))


def test_incomplete_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(VLMError, match=r"no open_clip_config\.json in"):
        load_vlm(str(tmp_path), "bundled")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(VLMError, match="not an open_clip configuration"):
        load_vlm(str(tmp_path), "bundled")
    text = json.dumps({"model_cfg": clip_config(t_hf_tokenizer_name="words")})
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(VLMError, match="no weights"):
        load_vlm(str(tmp_path), "bundled")
    with pytest.raises(VLMError, match=r"the tokenizer words of .* cannot be loaded"):
        load_vlm(str(tmp_path), "none")


def test_random_weights_are_seeded_and_leave_the_global_generator_alone(tiny: Any) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (load_vlm(str(tiny.folder), "none", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() != tiny.vlm.fingerprint()


def test_the_fingerprint_sees_every_weight(tiny: Any) -> None:
    changed = copy.deepcopy(tiny.vlm)
    assert changed.fingerprint() == tiny.vlm.fingerprint()
    with torch.no_grad():
        changed.text.tower.ln_final.bias[0] += 1e-6
    assert changed.fingerprint() != tiny.vlm.fingerprint()
