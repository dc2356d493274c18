"""The contract of image and text towers, for a tiny model of each family."""

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from slow_cases import also_slow
from small_towers import FAMILIES, STRIDES, save_family
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from semidavil.config import preset
from semidavil.models.dense import neighbourhood
from semidavil.models.execution import execute_as
from semidavil.models.image_encoder import load_encoder
from semidavil.models.segmenter import build_segmenter
from semidavil.models.vision import VisionEncoder
from semidavil.models.vlm import load_vlm
from semidavil.names import DENSE
from semidavil.settings import Runtime

CAPTIONS = [
    "a street scene with road at the bottom",
    "sky",
    "a car on the left and right , sky at top",
]
TIMM = [name for name, tower in FAMILIES.items() if tower]
TRANSFORMERS = [name for name in TIMM if STRIDES.get(name, 8) != 32]
OTHERS = ["test_vit", "test_resnet"]
LARGER_OTHERS = ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"]
# One of each kind of tower: open_clip's, and timm's with attention pooling, rotary positions, convolutions.
QUICK = ("ViT-B-16-quickgelu", "ViT-B-16-SigLIP2", "PE-Core-B-16", "MobileCLIP2-S0")


def some_quick(families: Iterable[str]) -> list[Any]:
    return [family if family in QUICK else also_slow(family)[0] for family in families]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's `folder`, open_clip's model (`reference`) and ours (`vlm`), each made once."""
    made: dict[str, SimpleNamespace] = {}

    def get(family: str) -> SimpleNamespace:
        if family not in made:
            folder = tmp_path_factory.mktemp("family")
            reference = save_family(family, folder)
            vlm = load_vlm(str(folder), "bundled")
            made[family] = SimpleNamespace(folder=folder, reference=reference, vlm=vlm)
        return made[family]

    return get


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_any_size_in_one_model_and_gradients_reach_all_that_is_trained(
    families: Any, family: str
) -> None:
    encoder = copy.deepcopy(families(family).vlm.vision)
    stride = STRIDES.get(family, 8)
    assert encoder.stride == stride
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    native, total = encoder.native_size, torch.zeros(())
    for size in (native, (3 * stride, 5 * stride), (2 * stride, 2 * stride), native):
        features = encoder(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)))
        assert features.shape == (2, encoder.dim, size[0] // stride, size[1] // stride)
        total = total + features.square().mean()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    total.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    with pytest.raises(ValueError, match=rf"is not a multiple of .* {stride}"):
        encoder(torch.rand(1, 3, stride + 1, stride))


def normalised(encoder: VisionEncoder, images: Tensor) -> Tensor:
    return (images - encoder.mean) / encoder.std


@pytest.mark.parametrize("family", some_quick(TIMM))
def test_features_at_native_size_are_the_libraries_own(families: Any, family: str) -> None:
    made = families(family)
    encoder, trunk = made.vlm.vision, made.reference.visual.trunk
    images = torch.rand(2, 3, *encoder.native_size)
    own = trunk.forward_intermediates(
        normalised(encoder, images), norm=True, intermediates_only=True
    )[-1]
    features = encoder(images)
    torch.testing.assert_close(features, finished(trunk, own), rtol=1e-5, atol=1e-5)
    plain = trunk.forward_intermediates(normalised(encoder, images), intermediates_only=True)
    first, last = encoder.forward_features(images, [-1, 0])
    torch.testing.assert_close(first, plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, features, rtol=0, atol=0)


def finished(trunk: Any, features: Tensor) -> Tensor:
    """The last layer of a trunk with what comes between it and the projection into the joint space."""
    if hasattr(trunk, "final_conv"):
        return trunk.final_conv(features)
    if hasattr(trunk, "stages"):
        return trunk.head.norm(features)
    return trunk.fc_norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("family", ["ViT-B-16-SigLIP2", "MobileCLIP2-S0"])
def test_pooled_features_are_the_models_own_embedding(families: Any, family: str) -> None:
    made = families(family)
    encoder, visual = made.vlm.vision, made.reference.visual
    images = torch.rand(2, 3, *encoder.native_size)
    tokens, trunk = encoder(images).flatten(2).transpose(1, 2), visual.trunk
    by_attention = family == "ViT-B-16-SigLIP2"
    pooled = trunk.attn_pool(tokens) if by_attention else trunk.head.fc(tokens.mean(1))
    expected = visual(normalised(encoder, images))
    torch.testing.assert_close(visual.head(pooled), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", some_quick(TRANSFORMERS))
def test_another_size_is_what_timm_computes_for_any_size(families: Any, family: str) -> None:
    made = families(family)
    encoder = made.vlm.vision
    trunk = made.reference.visual.trunk
    how = {"num_classes": trunk.num_classes, "global_pool": trunk.global_pool}
    dynamic = timm.create_model(FAMILIES[family], dynamic_img_size=True, **how)
    dynamic.load_state_dict(trunk.state_dict())
    images = torch.rand(2, 3, 3 * encoder.stride, 5 * encoder.stride)
    expected = dynamic.eval().forward_intermediates(
        normalised(encoder, images), indices=1, norm=True, intermediates_only=True
    )[0]
    torch.testing.assert_close(encoder(images), finished(dynamic, expected), rtol=1e-4, atol=1e-5)


def last_input(encoder: VisionEncoder, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the last block is given: tokens, and rotary positions where it has them."""
    found: list[Any] = []
    with encoder.blocks()[-1].register_forward_pre_hook(lambda _, given: found.append(given)):
        encoder(images)
    return found[0][0], found[0][1] if len(found[0]) > 1 else None


def parts_of(attention: Any, x: Tensor) -> list[Tensor]:
    """Queries, keys and values (N, c) of tokens (N, c), from the weights of one of four attentions."""
    if isinstance(attention, torch.nn.MultiheadAttention):
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    elif attention.qkv is not None:
        weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    else:
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        weights = [one.weight for one in linears]
        biases = [torch.zeros(len(one.weight)) if one.bias is None else one.bias for one in linears]
    return [x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)]


def by_loops(encoder: Any, images: Tensor, dense: str) -> Tensor:
    """Embeddings (e, h, w) of one image, patch by patch and head by head."""
    clip = not hasattr(encoder, "trunk")
    trunk = encoder.tower if clip else encoder.trunk
    x, rotation = last_input(encoder, images)
    prefix = 1 if clip else trunk.num_prefix_tokens
    grid = [side // encoder.stride for side in images.shape[-2:]]
    block = encoder.blocks()[-1]
    averaged = not clip and trunk.global_pool != "token"
    if dense == "maskclip" and averaged:
        after = [
            token for token in (block(x) if rotation is None else block(x, rotation))[0, prefix:]
        ]
    elif dense == "maskclip":  # a patch that sees no other: the block of a sequence of one
        after = [block(token[None, None])[0, 0] for token in x[0, prefix:]]
    else:
        attention, tokens = block.attn, (block.ln_1 if clip else block.norm1)(x[0])
        heads = attention.num_heads
        query, key, value = parts_of(attention, tokens)
        gathered = torch.zeros_like(query)
        size = query.shape[1] // heads
        for head in range(heads):
            place = slice(head * size, (head + 1) * size)
            mine = (query if dense == "clearclip" else key)[:, place]
            if rotation is not None:
                turned = apply_rot_embed_cat(mine[None, None, prefix:], rotation)[0, 0]
                mine = torch.cat([mine[:prefix], turned])
            for i in range(len(tokens)):
                scores = torch.stack([mine[i] @ mine[j] / size**0.5 for j in range(len(tokens))])
                if dense == "naclip":
                    for j in range(prefix, len(tokens)):
                        if i >= prefix:
                            (r, c), (s, d) = (divmod(n - prefix, grid[1]) for n in (i, j))
                            near = torch.tensor(-((r - s) ** 2 + (c - d) ** 2) / (2 * 5.0**2))
                            scores[j] = scores[j] + near.exp()
                weights = scores.softmax(0)
                gathered[i, place] = sum(weights[j] * value[j, place] for j in range(len(tokens)))
        if clip:
            after = list(attention.out_proj(gathered)[prefix:])
        else:
            after = list(attention.proj(attention.norm(gathered))[prefix:])
    joint = []
    for token in after:
        if clip:
            joint.append(trunk.ln_post(token) @ trunk.proj)
            continue
        token = trunk.norm(token)
        if trunk.attn_pool is not None:  # pooling one token alone
            token = trunk.attn_pool(token[None, None])[0]
        joint.append(encoder.tower.head(trunk.head(trunk.fc_norm(token))))
    return F.normalize(torch.stack(joint), dim=-1).T.unflatten(1, grid)


@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("family", some_quick([*TRANSFORMERS, "ViT-B-16-quickgelu"]))
def test_labels_of_patches_are_those_of_plain_loops(families: Any, family: str, dense: str) -> None:
    encoder = copy.deepcopy(families(family).vlm.vision).double()
    images = torch.rand(1, 3, 3 * encoder.stride, 2 * encoder.stride).double()
    expected = by_loops(encoder, images, dense)
    torch.testing.assert_close(encoder.embed(images, dense)[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["MobileCLIP2-S0", "convnext_base"])
def test_labels_of_convolutions_are_the_head_of_each_location(families: Any, family: str) -> None:
    encoder = families(family).vlm.vision
    images = torch.rand(1, 3, 64, 96)
    features, trunk = encoder(images), encoder.trunk
    embedded = encoder.embed(images)
    for row in range(2):
        for column in range(3):
            one = features[:, :, row, column]
            joint = encoder.tower.head(trunk.head.fc(one))
            expected = F.normalize(joint, dim=-1)[0]
            torch.testing.assert_close(embedded[0, :, row, column], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"model\.dense=naclip changes the last attention"):
        encoder.embed(images, "naclip")


def test_near_patches_count_as_in_naclips_code() -> None:
    rows, columns = 3, 4
    constant = 1 / (5.0 * 2**0.5)
    lines = [
        torch.linspace(-(n - 1) * constant, (n - 1) * constant, 2 * n - 1) for n in (rows, columns)
    ]
    window = torch.exp(-(torch.stack(torch.meshgrid(*lines, indexing="ij")) ** 2).sum(0))
    ones = torch.einsum("ij,kl->ijkl", torch.eye(rows), torch.eye(columns)).permute(0, 3, 1, 2)
    spread = F.conv2d(ones.reshape(-1, 1, rows, columns), window[None, None], padding="same")
    expected = spread.reshape(rows * columns, rows * columns)
    # Their order of patches on one side is by columns of the identity: the diagonal of each is 1.
    found = neighbourhood((rows, columns), torch.device("cpu"))
    torch.testing.assert_close(found.sort(1).values, expected.sort(1).values)
    torch.testing.assert_close(found.diagonal(), torch.ones(rows * columns))


@pytest.mark.parametrize("family", some_quick(TIMM))
def test_the_joint_projection_is_the_towers_own(families: Any, family: str) -> None:
    encoder = families(family).vlm.vision
    joint, trunk = encoder.joint_projection(), encoder.trunk
    features = encoder(torch.rand(1, 3, *encoder.native_size)).permute(0, 2, 3, 1)
    x = features
    if getattr(trunk, "attn_pool", None) is not None:  # its pooling, without the MLP
        weight, bias = trunk.attn_pool.kv.weight.chunk(2)[1], trunk.attn_pool.kv.bias.chunk(2)[1]
        x = trunk.attn_pool.proj(x @ weight.T + bias)
    x = (trunk.head.fc if hasattr(trunk, "stages") else trunk.head)(x)
    torch.testing.assert_close(joint(features), encoder.tower.head(x), rtol=1e-4, atol=1e-5)
    before = encoder.joint_projection().weight.clone()
    joint.weight.data.zero_()  # a copy's
    assert torch.equal(encoder.joint_projection().weight, before)


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_text_is_read_out_where_the_family_does(families: Any, family: str) -> None:
    made = families(family)
    text, reference = made.vlm.text, made.reference
    ids = text.tokenizer(CAPTIONS)
    expected = F.normalize(reference.encode_text(ids), dim=-1)
    torch.testing.assert_close(text.embed(CAPTIONS), expected, rtol=1e-4, atol=1e-5)
    sentences = F.normalize(text.joint_projection()(text.sentences(CAPTIONS)), dim=-1)
    torch.testing.assert_close(sentences, expected, rtol=1e-4, atol=1e-5)
    language = text(CAPTIONS)
    length = {"ViT-B-16-SigLIP2": 64, "PE-Core-B-16": 32}.get(family, 77)
    assert text.max_tokens == length
    every = text.tower.forward_intermediates(
        ids, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
    )["text_intermediates"][0]
    for row, (count, tokens) in enumerate(zip(language.lengths, language.tokens, strict=True)):
        torch.testing.assert_close(tokens[:count], every[row, :count], rtol=1e-4, atol=1e-5)
        # Start, words and end: 10, 3 and 12 tokens.
        assert count == len(CAPTIONS[row].split()) + 2


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_saved_and_loaded_it_is_the_same(families: Any, family: str, tmp_path: Path) -> None:
    made = families(family)
    again = load_vlm(str(made.folder), str(made.folder / "open_clip_model.safetensors"))
    assert again.fingerprint() == made.vlm.fingerprint()
    other = load_vlm(str(made.folder), "none", seed=4)
    assert other.fingerprint() == load_vlm(str(made.folder), "none", seed=4).fingerprint()
    other.vision.load_state_dict(made.vlm.vision.state_dict())
    images = torch.rand(1, 3, *made.vlm.vision.native_size)
    assert torch.equal(other.vision(images), made.vlm.vision(images))


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_mixed_precision_keeps_its_type_and_values(families: Any, family: str) -> None:
    encoder = copy.deepcopy(families(family).vlm.vision)
    images = torch.rand(2, 3, *encoder.native_size)
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images)
    assert rough.isfinite().all()
    error = (rough.float() - exact).norm() / exact.norm()
    assert 0 < error < 0.06
    rough.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", [*OTHERS, *also_slow(*LARGER_OTHERS)])
def test_encoders_without_language(name: str, families: Any) -> None:
    encoder = load_encoder(f"timm:{name}", "none", seed=2)
    assert encoder.joint_projection() is None
    stride = encoder.stride
    assert stride == (14 if "patch14" in name else 16)
    images = torch.rand(1, 3, 3 * stride, 2 * stride)
    features = encoder(images)
    assert features.shape == (1, encoder.dim, 3, 2)
    features.sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    same = load_encoder(f"timm:{name}", "none", seed=2)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.parameters(), same.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="knows no language"):
        encoder.embed(images)


@pytest.mark.parametrize("fusion", ["dlg", "wpct", "vlga"])
def test_a_network_of_an_encoder_beside_the_text_of_another_model(fusion: str) -> None:
    vlm = load_vlm("toy", "bundled")
    vlm.vision = load_encoder("timm:test_vit", "none")
    torch.manual_seed(0)
    network = build_segmenter(preset("toy", {"model.fusion": fusion}).model, vlm, 19)
    logits = network(torch.rand(2, 3, 40, 48), vlm.text(["a road", "sky"]))
    assert logits.shape == (2, 19, 40, 48)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@pytest.mark.parametrize("family", some_quick([*TRANSFORMERS, "ViT-B-16-quickgelu"]))
def test_activations_computed_twice_give_the_same_gradients(families: Any, family: str) -> None:
    plain, twice = (copy.deepcopy(families(family).vlm.vision) for _ in range(2))
    twice.checkpoint_activations()
    calls: list[int] = []
    first = twice.blocks()[0]
    norm = (
        first.ln_1 if hasattr(first, "ln_1") else first.norm1
    )  # a recomputation ends before the last layer
    norm.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 3, *plain.native_size)
    gradients = []
    for encoder in (plain, twice):
        encoder(images).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("family", ["MobileCLIP2-S0", "convnext_base", "RN50"])
def test_convolutions_are_not_computed_twice(families: Any, family: str) -> None:
    with pytest.raises(ValueError, match="for vision transformers"):
        copy.deepcopy(families(family).vlm.vision).checkpoint_activations()


@pytest.mark.slow
def test_compiled_blocks_with_rotary_positions_compute_the_same(
    families: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are traced; that the compiler keeps to it is the matter of test_execution.py."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("semidavil.models.execution.torch.compile", traced)
    vlm = copy.deepcopy(families("PE-Core-B-16").vlm)
    torch.manual_seed(0)
    plain = build_segmenter(preset("toy").model, vlm, 19)
    compiled = copy.deepcopy(plain)
    execute_as(Runtime(compile=True), [compiled])
    images, language = torch.rand(2, 3, 32, 48), vlm.text(CAPTIONS[:2])
    expected, found = (network(images, language) for network in (plain, compiled))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().mean(), list(network.decoder.parameters()))
        for out, network in ((expected, plain), (found, compiled))
    ]
    for got, wanted in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_of_sigmoids_one_of_which_is_true_the_probability_is_a_softmax() -> None:
    logits, bias = torch.tensor([1.3, -0.4, 2.2, 0.1]).double(), -10.0
    alone = torch.sigmoid(logits + bias)
    exactly_one = torch.stack(
        [
            torch.stack([alone[j] if i == j else 1 - alone[j] for j in range(len(logits))]).prod()
            for i in range(len(logits))
        ]
    )
    torch.testing.assert_close(exactly_one / exactly_one.sum(), logits.softmax(0))
