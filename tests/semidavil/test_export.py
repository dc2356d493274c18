"""`python -m semidavil export`: files that compute what the network does, read without this package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.config import Config, preset
from semidavil.experiments.exporting import ExportError, export
from semidavil.experiments.predictor import WEIGHTS, Predictor
from semidavil.experiments.street import build_method, vlm_of
from semidavil.models.text import Language
from semidavil.models.weights import save_weights
from semidavil.names import FUSIONS, VISION_ONLY

pytestmark = pytest.mark.slow
CAPTION = "a road with cars at the left"


def untrained(folder: Path, fusion: str, **changes: str) -> Path:
    """Weights as a run leaves them, of a network as it begins."""
    config = preset("toy", {"model.fusion": fusion, **changes})
    network = build_method(config, vlm_of(config), 19).student
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, network, config, "student")
    return folder / WEIGHTS


def window(config: Config, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *config.data.crop, generator=generator)


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name not in VISION_ONLY])
def test_every_attention_is_exported_with_its_caption(fusion: str, tmp_path: Path) -> None:
    predictor = Predictor.load(untrained(tmp_path, fusion), "cpu")
    image = window(predictor.config)
    made = export(predictor, tmp_path / "file.pt2", CAPTION, image)
    assert made.largest < 1e-4
    with torch.no_grad():
        expected = predictor.network(image, predictor.language(CAPTION))
    found = torch.export.load(str(tmp_path / "file.pt2")).module()(image)
    assert made.largest == pytest.approx(float((found - expected).abs().max()), rel=0.5, abs=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["test_vit", "test_resnet"])
def test_encoders_of_timm_are_exported(encoder: str, tmp_path: Path) -> None:
    chosen = {"model.encoder": f"timm:{encoder}", "model.encoder_weights": "none"}
    predictor = Predictor.load(untrained(tmp_path, "none", **chosen), "cpu")
    made = export(predictor, tmp_path / "file.pt2", None, window(predictor.config))
    assert made.largest < 1e-4


@pytest.mark.filterwarnings("error:# The axis name")
def test_onnx_takes_any_batch_and_captions_of_any_length(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = Predictor.load(untrained(tmp_path, "dlg"), "cpu")
    made = export(predictor, tmp_path / "file.onnx", None, window(predictor.config))
    assert made.largest < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "file.onnx"))
    assert {i.name: i.shape for i in (*session.get_inputs(), *session.get_outputs())} == {
        "image": ["batch", 3, 32, 32],
        "tokens": ["batch", "tokens", 64],
        "mask": ["batch", "tokens"],
        "logits": ["batch", 19, 32, 32],
    }
    for captions in ([CAPTION], [CAPTION, "sky", "a wall on the right"]):
        language = Language.joined([predictor.language(text) for text in captions])
        images = window(predictor.config, len(captions))
        feed = {"image": images, "tokens": language.tokens, "mask": language.mask}
        (found,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
        with torch.no_grad():
            expected = predictor.network(images, language)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)
    about = json.loads((tmp_path / "file.onnx.json").read_text())
    assert about["run"] == predictor.config.key()
    assert len(about["classes"]) == 19
    assert about["caption"] is None


def test_the_command_compares_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    untrained(tmp_path / "run", "none")
    done = CliRunner().invoke(app, ["export", "run"])
    assert done.exit_code == 0, done.output
    assert "logits differ from the network's by at most" in done.output
    assert Path("segmenter.onnx").exists()
    assert json.loads(Path("segmenter.onnx.json").read_text())["inputs"] == {
        "image": [1, 3, 32, 32]
    }
    for arguments, message in (
        (["run", "--out", "a.pt2"], "ends with .onnx"),
        (["gone"], "neither a file"),
        (["run", "--picture", "gone.png"], "gone.png"),
    ):
        done = CliRunner().invoke(app, ["export", *arguments])
        assert done.exit_code == 1
        assert message in " ".join(done.output.split())


def test_what_depends_on_a_captions_length_needs_the_caption(tmp_path: Path) -> None:
    predictor = Predictor.load(untrained(tmp_path, "vlga"), "cpu")
    with pytest.raises(ExportError, match="pass --caption"):
        export(predictor, tmp_path / "file.pt2", None, window(predictor.config))
