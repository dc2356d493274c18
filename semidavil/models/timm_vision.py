"""timm's networks as dense encoders: vision transformers, and networks of convolutions.

They are the image towers of SigLIP 2, EVA02-CLIP, PE-Core, MobileCLIP 2, ViTamin and CLIP's ConvNeXts, which
open_clip wraps, and encoders that know no language (DINOv2, DINOv3, ImageNet's).
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semidavil.models.dense import attend, require_attention, require_known
from semidavil.models.layers import embed_patches
from semidavil.models.timm_layers import for_gpus, heads_of, project
from semidavil.models.vision import VisionEncoder, resize_positions
from semidavil.models.weights import linear


def timm_encoder(
    tower: nn.Module, mean: Sequence[float], std: Sequence[float], size: Sequence[int]
) -> VisionEncoder:
    """The encoder of timm's network `tower`, or of the one in open_clip's wrapper.

    Args:
        size: (height, width) in pixels that it was trained at.

    Raises:
        ValueError: a kind of network that takes one size of images, or that is not known.
    """
    trunk = trunk_of(tower)
    if isinstance(tower, TimmModel) and not set(dict(tower.head.named_children())) <= {
        "drop",
        "proj",
        "mlp",
    }:
        raise ValueError("it pools by an attention of open_clip's own")
    # Subclasses embed or pool in ways of their own.
    if type(trunk) in (VisionTransformer, Eva):
        if getattr(trunk, "rope_mixed", False):
            raise ValueError("its rotary positions differ from block to block")
        return TimmViT(tower, mean, std, size)
    fixed = trunk.pretrained_cfg.get("fixed_input_size", False)
    if fixed or not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "feature_info"):
        raise ValueError(f"{type(trunk).__name__} takes no images of any size")
    return TimmConvNet(tower, mean, std, size)


def trunk_of(tower: nn.Module) -> Any:
    """timm's network: in open_clip's wrapper, its trunk."""
    return tower.trunk if isinstance(tower, TimmModel) else tower


class TimmEncoder(VisionEncoder):
    """What timm's transformers and networks of convolutions have in common."""

    def __init__(
        self, tower: nn.Module, mean: Sequence[float], std: Sequence[float], size: Sequence[int]
    ) -> None:
        super().__init__(tower, mean, std)
        self.native_size = (size[0], size[1])
        for_gpus(tower)
        self.trunk.requires_grad_(True)
        if isinstance(tower, TimmModel):
            tower.head.requires_grad_(False)

    @property
    def trunk(self) -> Any:
        return trunk_of(self.tower)

    def _require_joint(self) -> None:
        if not self._has_joint():
            raise ValueError("this encoder knows no language: labels of patches are the VLM's own")

    def _has_joint(self) -> bool:
        return isinstance(self.tower, TimmModel)

    def _adapt(self, pooled: Tensor) -> Tensor:
        """open_clip's projection behind the trunk, where it has one."""
        return self.tower.head(pooled) if isinstance(self.tower, TimmModel) else pooled

    def _adapter(self) -> "nn.Linear | None":
        """The same as a linear layer; the identity where there is none."""
        tower = self.tower
        layers = dict(tower.head.named_children()) if isinstance(tower, TimmModel) else {}
        if "mlp" in layers:
            return None
        if isinstance(projection := layers.get("proj"), nn.Linear):
            return linear(projection.weight, projection.bias)
        last = self.trunk.num_classes or self.trunk.num_features
        return linear(torch.eye(last))


class TimmViT(TimmEncoder):
    """timm's `VisionTransformer` and `Eva`, with learned or rotary positions, registers, or a stem."""

    def __init__(
        self, tower: nn.Module, mean: Sequence[float], std: Sequence[float], size: Sequence[int]
    ) -> None:
        super().__init__(tower, mean, std, size)
        trunk = self.trunk
        self.dim = trunk.embed_dim
        self.stride = int(trunk.feature_info[-1]["reduction"])
        trunk.patch_embed.strict_img_size = False
        trunk.patch_embed.flatten = True
        self._rotations: dict[tuple[int, int, torch.device], Tensor] = {}
        self._checkpointing = False
        for unused in (trunk.attn_pool, trunk.head):
            if unused is not None:
                unused.requires_grad_(False)

    def forward_features(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        grid, trunk = self._grid(images), self.trunk
        wanted = sorted(index % len(trunk.blocks) for index in indices)
        x, kept = self._embed_patches(images, grid), []
        for number in range(wanted[-1] + 1):
            x = self._block(number, x, grid)
            if number in wanted:
                last = number == len(trunk.blocks) - 1
                kept.append((self._norm(x) if last else x)[:, trunk.num_prefix_tokens :])
        return [layer.transpose(1, 2).unflatten(2, grid) for layer in kept]

    def embed(self, images: Tensor, dense: str = "maskclip") -> Tensor:
        """See `VisionEncoder.embed`.

        A class token that pools (EVA02, MobileCLIP's ViTs): as CLIP's. An attention that pools (SigLIP, PE):
        each patch alone goes through its value and output projections, norm and MLP, whatever the last
        block is; for `maskclip` that block stays. Tokens that are averaged (ViTamin): the head of each.
        """
        require_known(dense)
        self._require_joint()
        grid, trunk = self._grid(images), self.trunk
        x = self._embed_patches(images, grid)
        for number in range(len(trunk.blocks) - 1):
            x = self._block(number, x, grid)
        block, first = trunk.blocks[-1], trunk.num_prefix_tokens
        if dense == "maskclip" and trunk.global_pool != "token":
            x = self._block(len(trunk.blocks) - 1, x, grid)[:, first:]
        else:
            post_norm = isinstance(block, EvaBlockPostNorm)
            tokens = x if post_norm else block.norm1(x)
            query, key, value = heads_of(block.attn, tokens, self._rotation(grid))
            gathered = (
                value if dense == "maskclip" else attend(dense, query, key, value, grid, first)
            )
            out = _scaled(block, project(block.attn, gathered, tokens), "1")
            out = block.norm1(out) if post_norm else out
            if dense == "maskclip":
                x = x + out
                mlp = _scaled(block, block.mlp(x if post_norm else block.norm2(x)), "2")
                x = (x + (block.norm2(mlp) if post_norm else mlp))[:, first:]
            else:
                x = out[:, first:]
        x = trunk.norm(x)
        if trunk.attn_pool is not None:
            x = _pool_alone(trunk.attn_pool, x)
        joint = self._adapt(trunk.head(trunk.fc_norm(x)))
        return F.normalize(joint, dim=-1).transpose(1, 2).unflatten(2, grid)

    def joint_projection(self) -> nn.Linear | None:
        """See `VisionEncoder.joint_projection`; of an attention that pools, without its MLP."""
        if not self._has_joint():
            return None
        trunk = self.trunk
        layers = [trunk.head] if isinstance(trunk.head, nn.Linear) else []
        if pool := trunk.attn_pool:
            value = linear(pool.kv.weight.chunk(2)[1], _half(pool.kv.bias))
            layers = [value, pool.proj, *layers]
        adapter = self._adapter()
        return None if adapter is None else _joined([*layers, adapter])

    def blocks(self) -> list[nn.Module]:
        return list(self.trunk.blocks)

    def checkpoint_activations(self) -> None:
        self._checkpointing = True

    def _norm(self, x: Tensor) -> Tensor:
        """The final norm; where tokens are averaged, timm has it behind the average."""
        pooled = self.trunk.attn_pool is None
        return self.trunk.fc_norm(self.trunk.norm(x)) if pooled else self.trunk.norm(x)

    def _block(self, number: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        block = self.trunk.blocks[number]
        extra = () if (rotation := self._rotation(grid)) is None else (rotation,)
        if self._checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *extra, use_reentrant=False)
        return block(x, *extra)

    def _embed_patches(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, prefix + hw, c_v) before the first block: timm's, but for any grid."""
        trunk, images = self.trunk, (images - self.mean) / self.std
        embed = trunk.patch_embed
        plain = type(embed) is PatchEmbed
        x = embed.norm(embed_patches(images, embed.proj)) if plain else embed(images)
        first = [
            token.to(x.dtype).expand(x.shape[0], -1, -1)
            for token in (trunk.cls_token, getattr(trunk, "reg_token", None))
            if token is not None
        ]
        prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        positions = None
        if trunk.pos_embed is not None:
            positions = resize_positions(trunk.pos_embed[0], embed.grid_size, grid, prefix)
            positions = positions.to(x.dtype)
        if positions is not None and trunk.no_embed_class:
            x = x + positions
        if first:
            x = torch.cat([*first, x], dim=1)
        if positions is not None and not trunk.no_embed_class:
            x = x + positions
        return trunk.norm_pre(x)

    def _rotation(self, grid: tuple[int, int]) -> Tensor | None:
        """Rotary positions of a grid, (hw, 2 d), computed once: a step that is replayed on a GPU cannot
        make what timm makes on the CPU."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return None
        place = (*grid, self.mean.device)
        if place not in self._rotations:
            native = rope.feat_shape  # of one that is made for a single size, else None
            with torch.inference_mode(False), torch.no_grad():
                rope.update_feat_shape(list(grid))
                made = rope.get_embed(list(grid)).to(self.mean.device).clone()
                rope.update_feat_shape(native)
            self._rotations[place] = made
        return self._rotations[place]


def _scaled(block: nn.Module, x: Tensor, which: str) -> Tensor:
    """The layer scale of a block's first or second branch, where it has one."""
    if isinstance(scale := getattr(block, f"gamma_{which}", None), Tensor):
        return scale * x
    return getattr(block, f"ls{which}", nn.Identity())(x)


def _pool_alone(pool: AttentionPoolLatent, x: Tensor) -> Tensor:
    """What the pooling attention makes of each token (B, N, c) if it sees no other: all weights are 1."""
    x = pool.proj(F.linear(x, pool.kv.weight.chunk(2)[1], _half(pool.kv.bias)))
    return x + pool.mlp(pool.norm(x)) if pool.mlp is not None else x


def _half(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.chunk(2)[1]


def _joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Linear layers one after the other, as one."""
    weight: Tensor = layers[0].weight
    bias: Tensor | None = layers[0].bias
    for layer in layers[1:]:
        weight = layer.weight @ weight
        parts = [layer.weight @ bias if bias is not None else None, layer.bias]
        found = [part for part in parts if part is not None]
        bias = torch.stack(found).sum(0) if found else None
    return linear(weight, bias)


class TimmConvNet(TimmEncoder):
    """timm's networks of stages: FastViT, ConvNeXt, ResNet, EfficientNet, ...

    Features are the last stage's, after what a language tower's projection reads: FastViT's last
    convolution, ConvNeXt's norm.
    """

    def __init__(
        self, tower: nn.Module, mean: Sequence[float], std: Sequence[float], size: Sequence[int]
    ) -> None:
        super().__init__(tower, mean, std, size)
        trunk, last = self.trunk, self.trunk.feature_info[-1]
        self.stages = len(trunk.feature_info)
        self.stride = int(last["reduction"])
        self._final = getattr(trunk, "final_conv", None) is not None
        self.dim = trunk.num_features if self._final else int(last["num_chs"])
        used = {id(p) for p in self._used()}
        for parameter in trunk.parameters():
            parameter.requires_grad_(id(parameter) in used)

    def forward_features(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        self._grid(images)
        wanted = sorted(index % self.stages for index in indices)
        layers = self.trunk.forward_intermediates(
            (images - self.mean) / self.std,
            indices=wanted,
            norm=True,
            stop_early=True,
            intermediates_only=True,
        )
        if wanted[-1] == self.stages - 1:
            layers[-1] = self._finish(layers[-1])
        return layers

    def embed(self, images: Tensor, dense: str = "maskclip") -> Tensor:
        """See `VisionEncoder.embed`: pooling is an average, so that each location can take its place."""
        require_attention(dense)
        self._require_joint()
        features = self(images).permute(0, 2, 3, 1)
        head = self.trunk.head
        joint = self._adapt(getattr(head, "fc", nn.Identity())(features))
        return F.normalize(joint, dim=-1).permute(0, 3, 1, 2)

    def joint_projection(self) -> nn.Linear | None:
        if not self._has_joint() or (adapter := self._adapter()) is None:
            return None
        classify = getattr(self.trunk.head, "fc", None)
        return _joined([classify, adapter] if isinstance(classify, nn.Linear) else [adapter])

    def _finish(self, x: Tensor) -> Tensor:
        trunk = self.trunk
        if self._final:
            return trunk.final_conv(x)
        norm = getattr(getattr(trunk, "head", None), "norm", None)
        return x if norm is None else norm(x)

    def _used(self) -> list[nn.Parameter]:
        """The parameters that features depend on."""
        training = [(module, module.training) for module in self.modules()]
        side = 2 * self.stride
        try:
            self.eval()  # no statistics are to be counted
            with torch.enable_grad():
                features = self(torch.zeros(1, 3, side, side))
                parameters = list(self.trunk.parameters())
                found = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        finally:
            for module, was in training:
                module.training = was
        return [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]


def build_timm(name: str, seed: int, **how: Any) -> Any:
    """timm's network `name`, initialised from `seed`; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, **how)
