"""The VLM against open_clip itself and against a computation from the weights alone."""

import copy
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from semidavil.models.text import Language
from semidavil.models.vision import resize_positions
from semidavil.models.vlm import VLM, VLMError, load_vlm

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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("clip")
    reference = save_clip(folder)
    return SimpleNamespace(folder=folder, reference=reference, vlm=load_vlm(str(folder), "bundled"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A CLIP with a word-level Hugging Face tokenizer and average pooling, as the toy CLIP is."""
    folder = tmp_path_factory.mktemp("words")
    save_clip(
        folder,
        v_pool_type="avg",
        t_hf_tokenizer_name="words",
        t_vocab_size=len(WORDS) + 4,
        t_pool_type="eos",
        t_eos_id=len(WORDS) + 3,
    )
    return load_vlm(str(folder), "bundled")


def by_hand(state: dict[str, Tensor], images: Tensor, heads: int, mask_clip: bool) -> Tensor:
    """Normalised patch tokens (B, hw, c) of a ViT, or MaskCLIP embeddings, from weights alone."""

    def get(name: str) -> Tensor:
        return state[f"visual.{name}"].double()

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * get(f"{name}.weight") + get(f"{name}.bias")

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    mean, std = (torch.tensor(value).double().view(3, 1, 1) for value in (MEAN, STD))
    x = (images - mean) / std
    weight = get("conv1.weight")
    size = weight.shape[-1]
    patches = x.unfold(2, size, size).unfold(3, size, size)  # (B, 3, h, w, size, size)
    x = torch.einsum("bchwij,ocij->bhwo", patches, weight).flatten(1, 2)
    x = torch.cat([get("class_embedding").expand(len(x), 1, -1), x], 1)
    x = norm(x + get("positional_embedding"), "ln_pre")
    layers = sum(name.endswith("ln_1.weight") and "visual" in name for name in state)
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        y = norm(x, f"{block}.ln_1")
        y = y @ get(f"{block}.attn.in_proj_weight").T + get(f"{block}.attn.in_proj_bias")
        q, k, v = y.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        if mask_clip and layer == layers - 1:
            weights = torch.eye(x.shape[1]).double()  # each token attends to itself
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + linear(y, f"{block}.mlp.c_proj")
    x = norm(x, "ln_post")[:, 1:]
    return F.normalize(x @ get("proj"), dim=-1) if mask_clip else x


@pytest.mark.parametrize("mask_clip", [False, True])
def test_values_and_gradients_match_a_computation_by_hand(tiny: Any, mask_clip: bool) -> None:
    encoder = copy.deepcopy(tiny.vlm.vision).double()
    images = torch.rand(2, 3, 32, 32).double().requires_grad_()
    state = {k: v.double().requires_grad_() for k, v in tiny.reference.state_dict().items()}
    expected = by_hand(state, images, heads=2, mask_clip=mask_clip)
    ours = encoder.embed(images) if mask_clip else encoder(images)
    assert ours.shape == (2, 20 if mask_clip else 32, 4, 4)
    ours = ours.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    direction = torch.randn_like(expected)
    (image_gradient,) = torch.autograd.grad((expected * direction).sum(), images, retain_graph=True)
    (ours_gradient,) = torch.autograd.grad((ours * direction).sum(), images, retain_graph=True)
    torch.testing.assert_close(ours_gradient, image_gradient, rtol=1e-8, atol=1e-9)
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    for name in ("positional_embedding", "conv1.weight", "transformer.resblocks.2.mlp.c_fc.weight"):
        expected_gradient = state[f"visual.{name}"].grad
        got = dict(encoder.tower.named_parameters())[name].grad
        torch.testing.assert_close(got, expected_gradient, rtol=1e-8, atol=1e-9)


def test_features_at_native_size_are_open_clips_own_tokens(tiny: Any) -> None:
    images = torch.rand(2, 3, 32, 32)
    visual = tiny.reference.visual
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    theirs = visual.forward_intermediates(
        normalised, normalize_intermediates=True, intermediates_only=True
    )["image_intermediates"]
    torch.testing.assert_close(tiny.vlm.vision(images), theirs[-1], rtol=0, atol=1e-5)
    plain = visual.forward_intermediates(normalised, intermediates_only=True)["image_intermediates"]
    first, last = tiny.vlm.vision.forward_features(images, [-1, 0])
    torch.testing.assert_close(first, plain[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(last, theirs[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (40, 24)])
def test_any_size_works_as_if_the_position_embeddings_had_been_loaded_at_it(
    tiny: Any, size: tuple[int, int]
) -> None:
    encoder = tiny.vlm.vision
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.rand(2, 3, *size)
    ours = encoder(images)
    resized = copy.deepcopy(tiny.reference.visual)
    grid = resized.positional_embedding[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    new = (size[0] // 8, size[1] // 8)
    grid = F.interpolate(grid, new, mode="bicubic", antialias=True).flatten(2)[0].T
    resized.positional_embedding = torch.nn.Parameter(
        torch.cat([resized.positional_embedding[:1], grid]).detach()
    )
    normalised = (images - encoder.mean) / encoder.std
    theirs = resized.forward_intermediates(
        normalised, indices=1, normalize_intermediates=True, intermediates_only=True
    )["image_intermediates"][0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.sum().backward()
    assert encoder.tower.positional_embedding.grad.abs().sum() > 0
    encoder.zero_grad()
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_positions_at_the_native_grid_are_the_parameter_itself() -> None:
    positions = torch.rand(1 + 12, 5)
    assert resize_positions(positions, (3, 4), (3, 4)) is positions
    expected = F.interpolate(
        positions[1:].T.reshape(1, 5, 3, 4), (7, 2), mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(
        resize_positions(positions, (3, 4), (7, 2))[1:], expected.flatten(0, 1)
    )


def test_a_size_that_is_no_multiple_of_the_stride_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"30x32 is not a multiple .* 8"):
        tiny.vlm.vision(torch.rand(1, 3, 30, 32))


def test_average_pooled_patch_embeddings_average_to_open_clips_image_embedding(words: VLM) -> None:
    tower = words.vision.tower
    images = torch.rand(2, 3, 32, 32)
    patches = words.vision(images).flatten(2).mean(2) @ tower.proj
    expected = tower((images - words.vision.mean) / words.vision.std)
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)
    embedded = words.vision.embed(images)
    each = F.normalize(words.vision(images).permute(0, 2, 3, 1) @ tower.proj, dim=-1)
    torch.testing.assert_close(embedded, each.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-6)


def test_resnet_features_and_value_path(tmp_path: Path) -> None:
    reference = save_clip(tmp_path, **RESNET).visual
    encoder = load_vlm(str(tmp_path), "bundled").vision
    assert (encoder.dim, encoder.stride) == (256, 32)
    images = torch.rand(2, 3, 64, 96)
    x = (images - encoder.mean) / encoder.std
    x = reference.layer4(reference.layer3(reference.layer2(reference.layer1(reference.stem(x)))))
    torch.testing.assert_close(encoder(images), x, rtol=1e-4, atol=1e-5)
    pool = reference.attnpool
    # With one location and only itself to attend to, attention pooling is the value path.
    one = torch.rand(2, 3, 32, 32)
    small = encoder(one)
    positions = pool.positional_embedding[1:].T.reshape(1, -1, 2, 2)
    position = F.interpolate(positions, (1, 1), mode="bicubic", antialias=True).flatten()
    token = small.flatten(1) + position
    value, _ = F.multi_head_attention_forward(
        token[None], token[None], token[None], 256, pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight, training=False,
    )  # fmt: skip
    expected = F.normalize(value[0], dim=-1)
    torch.testing.assert_close(encoder.embed(one)[..., 0, 0], expected, rtol=1e-4, atol=1e-5)
    assert encoder.embed(images).shape == (2, 20, 2, 3)
    stages = encoder.forward_features(images, [1, 4])
    assert [stage.shape[-1] for stage in stages] == [24, 3]
    assert not any(p.requires_grad for p in encoder.tower.attnpool.parameters())


def test_trainable_parameters_are_those_that_features_depend_on(tiny: Any) -> None:
    encoder = copy.deepcopy(tiny.vlm.vision)
    encoder(torch.rand(1, 3, 32, 32)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert not encoder.tower.proj.requires_grad


def test_state_dict_is_the_towers_and_copies_are_independent(tiny: Any) -> None:
    encoder = tiny.vlm.vision
    names = {f"tower.{name}" for name in tiny.reference.visual.state_dict()}
    assert set(encoder.state_dict()) == names
    teacher = copy.deepcopy(encoder)
    images = torch.rand(1, 3, 32, 32)
    before = encoder(images)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(encoder(images), before, rtol=0, atol=0)
    assert not torch.equal(teacher(images), before)


CAPTIONS = ["a road", "a street scene with a car on the left and sky at the top", "", "sky"]


@pytest.fixture(params=["bpe", "words"])
def vlm(request: pytest.FixtureRequest, tiny: Any, words: VLM) -> VLM:
    chosen = tiny.vlm if request.param == "bpe" else words
    chosen.text._known.clear()
    return chosen


def test_tokens_are_the_towers_and_the_mask_ends_with_the_end_token(vlm: VLM) -> None:
    language = vlm.text(CAPTIONS)
    assert language.tokens.shape == (4, int(language.mask.sum(1).max()), 24)
    # start, words, end; the second caption has 14 words and is one token longer than the context
    assert language.mask.sum(1).tolist() == [4, 16, 2, 3]
    assert language.mask[0].tolist() == [True] * 4 + [False] * 12
    tower = vlm.text.tower
    for text, tokens, mask in zip(CAPTIONS, language.tokens, language.mask, strict=True):
        ids = vlm.text.tokenizer([text])
        x, attention_mask = tower._embeds(ids)
        expected = tower.ln_final(tower.transformer(x, attn_mask=attention_mask))[0]
        count = int(mask.sum())
        torch.testing.assert_close(tokens[:count], expected[:count], rtol=0, atol=1e-5)
        assert (tokens[count:] == 0).all()


def test_pooled_embedding_is_open_clips(tiny: Any) -> None:
    ids = tiny.vlm.text.tokenizer(["a road", "sky"])
    expected = tiny.reference.encode_text(ids, normalize=True)
    torch.testing.assert_close(tiny.vlm.text.embed(["a road", "sky"]), expected, rtol=0, atol=1e-5)


def test_a_captions_features_do_not_depend_on_the_batch_to_the_last_bit(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [f"{word} at the top" for word in WORDS]
    together = vlm.text(many)
    vlm.text._known.clear()
    batches: list[int] = []
    encode = vlm.text.tower.forward_intermediates
    monkeypatch.setattr(
        vlm.text.tower,
        "forward_intermediates",
        lambda ids, **options: batches.append(len(ids)) or encode(ids, **options),
    )
    for index in (3, 0, 17):
        alone = vlm.text([many[index]])
        count = int(alone.mask.sum())
        assert torch.equal(alone.tokens[0], together.tokens[index, :count])
    # Shapes decide how a matrix product is computed, so there is only one.
    assert batches == [vlm.text.BATCH] * 3


def test_each_caption_is_encoded_once(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = vlm.text._encode
    monkeypatch.setattr(vlm.text, "_encode", lambda texts: encoded.extend(texts) or encode(texts))
    first = vlm.text(["a road", "sky", "a road"])
    second = vlm.text(["sky", "a car", "a road"])
    assert encoded == ["a road", "sky", "a car"]
    torch.testing.assert_close(first.tokens[1, :3], second.tokens[0, :3], rtol=0, atol=0)
    monkeypatch.setattr(vlm.text, "memory", 2)
    vlm.text(["a car", "left", "right", "a road"])  # more than it remembers
    assert list(vlm.text._known) == ["right", "a road"]
    vlm.text(["a road"])
    assert encoded == ["a road", "sky", "a car", "left", "right"]


def test_runs_of_one_process_share_what_the_same_tower_has_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("semidavil.models.text._memories", {})
    first = load_vlm("toy", "bundled").text
    tokens = first(["a road"]).tokens
    second = load_vlm("toy", "bundled").text
    monkeypatch.setattr(second, "_encode", None)  # it need not
    assert torch.equal(second(["a road"]).tokens, tokens)
    for changed in (load_vlm("toy", "none").text, load_vlm("toy", "bundled").text.double()):
        assert "a road" not in changed._known
    assert "a road" in first._known  # what is in use stays, whichever tower came last


def test_text_encoder_stays_frozen_and_its_memory_serves_training(vlm: VLM) -> None:
    assert not any(parameter.requires_grad for parameter in vlm.text.parameters())
    assert not vlm.text.train().training
    plain = vlm.text(CAPTIONS).tokens
    vlm.text._known.clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        vlm.text(CAPTIONS)
    tokens = vlm.text(CAPTIONS).tokens
    assert torch.equal(tokens, plain)
    weight = torch.rand(24, requires_grad=True)
    (tokens * weight).square().sum().backward()  # fails on inference tensors
    assert weight.grad is not None


def test_resized_positions_from_inference_mode_serve_training(tiny: Any) -> None:
    images = torch.rand(1, 3, 72, 8)  # a size of no other test
    with torch.inference_mode():
        tiny.vlm.vision(images)
    tiny.vlm.vision(images).sum().backward()
    tiny.vlm.vision.zero_grad()


def test_token_counts_tell_what_fits(vlm: VLM) -> None:
    fits = "a street scene with a car on the left and sky at the"  # 13 words + 2
    counts = vlm.text.count_tokens(
        ["sky", fits, f"{fits} top right", f"{fits} top right bottom car"]
    )
    assert counts == [3, 15, 17, 17]


def test_language_slices_and_moves() -> None:
    language = Language(torch.rand(3, 4, 2), torch.ones(3, 4, dtype=torch.bool))
    assert language[1:].tokens.shape == (2, 4, 2)
    assert language.to("cpu")[:1].mask.shape == (1, 4)


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


def fill_cache(home: Path, repository: str, file: Path) -> None:
    """The Hugging Face cache as a download leaves it."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    commit = "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / file.name).symlink_to(file)


def test_a_cached_tag_works_without_network_and_brings_its_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(tmp_path / "clip", quick_gelu=True)
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    fill_cache(tmp_path, "timm/vit_base_patch16_clip_224.openai", file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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


def test_missing_weights_name_the_file_and_what_to_do_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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
        ("ViT-B-16-SigLIP", "none", r"not supported: its image tower is timm's"),
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
