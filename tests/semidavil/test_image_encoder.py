"""Encoders without language: their weights, and whole runs with one beside the toy CLIP's text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from offline_hub import OfflineHub
from open_clip.pretrained import get_pretrained_cfg as open_clip_cfg
from safetensors.torch import save_file

from semidavil.config import Config, ConfigError, preset
from semidavil.data.fingerprint import differences, fingerprint
from semidavil.experiments.predictor import WEIGHTS, Predictor
from semidavil.language.positions import Positions
from semidavil.models.image_encoder import load_encoder
from semidavil.models.vlm import VLMError, load_vlm
from semidavil.train import Report, train
from sweeps.plan.encoders import REPOSITORIES, VISION_ONLY, VLMS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of `test_vit` as timm's repositories have them, in a folder."""
    torch.manual_seed(5)
    network = timm.create_model("test_vit")
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path / "here"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    about = {
        "architecture": "test_vit",
        "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    }
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_weights_of_a_file_and_of_its_folder(saved: Path) -> None:
    encoder = load_encoder("timm:test_vit", str(saved))
    images = torch.rand(2, 3, 160, 160)
    reference = timm.create_model("test_vit")
    timm.models.load_checkpoint(reference, str(saved / "model.safetensors"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    expected = reference.eval().forward_intermediates(
        (images - mean) / std, norm=True, intermediates_only=True
    )[-1]
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    same = load_encoder("timm:test_vit", str(saved / "model.safetensors"))
    assert torch.equal(same(images), encoder(images))
    (saved / "config.json").unlink()
    bare = load_encoder("timm:test_vit", str(saved))  # all of its tags are normalised so
    assert bare.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("classes", [0, 7])
def test_weights_with_any_classifier_or_none(classes: int, tmp_path: Path) -> None:
    """Of a network some of whose weights were published as NumPy arrays."""
    torch.manual_seed(5)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=classes)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    encoder = load_encoder("timm:vit_tiny_patch16_224", str(tmp_path))
    network.reset_classifier(0)
    states = zip(encoder.tower.state_dict().items(), network.state_dict().items(), strict=True)
    assert all(mine == its and torch.equal(one, other) for (mine, one), (its, other) in states)


def test_a_cached_tag_works_without_network(saved: Path, offline_hub: OfflineHub) -> None:
    offline_hub.add("timm/test_vit.r160_in1k", saved / "model.safetensors")
    file = load_encoder("timm:test_vit", str(saved))
    for tag in ("default", "r160_in1k"):
        found = load_encoder("timm:test_vit", tag)
        states = zip(found.state_dict().values(), file.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in states)


@pytest.mark.usefixtures("offline_hub")
def test_what_cannot_be_had_names_the_file_and_what_to_do() -> None:
    with pytest.raises(VLMError) as raised:
        load_encoder("timm:vit_base_patch16_dinov3", "default")
    repository = "timm/vit_base_patch16_dinov3.lvd1689m"
    for part in (
        "'lvd1689m' of timm:vit_base_patch16_dinov3",
        f"`hf download {repository} model.safetensors config.json --local-dir DIR`",
        "--set model.encoder_weights=DIR",
        "HF_HOME",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vit_base_patch16_dinov", "none", r"no such network; did you mean .*vit_base_patch"),
        (
            "test_vit.r160_in1k",
            "none",
            r"model\.encoder=timm:test_vit model\.encoder_weights=r160_in1k",
        ),
        ("test_vit", "r161", r"neither a file.*tags: r160_in1k"),
        ("swin_tiny_patch4_window7_224", "none", r"not supported: .* takes no images of any size"),
        ("test_resnet", "{saved}", r"do not fit timm:test_resnet: .*Missing key"),
        ("vit_tiny_patch16_224", "{notes}", r"must be a \.safetensors"),
    ],
)
def test_wrong_names_are_explained(name: str, weights: str, message: str, saved: Path) -> None:
    (saved / "notes.txt").write_text("no weights")
    weights = weights.format(saved=saved / "model.safetensors", notes=saved / "notes.txt")
    with pytest.raises(VLMError, match=message):
        load_encoder(f"timm:{name}", weights)


def test_names_are_checked_without_loading_anything() -> None:
    with pytest.raises(ConfigError, match="write timm:NAME"):
        preset("toy", {"model.encoder": "vit_tiny_patch16_224"})
    with pytest.raises(ConfigError, match="choose from maskclip, clearclip, naclip"):
        preset("toy", {"model.dense": "sclip"})


def test_a_repaired_file_of_weights_is_other_data(saved: Path, tiny_toy: dict[str, str]) -> None:
    config = preset("toy", {**tiny_toy, "model.encoder": "timm:test_vit"})
    before = fingerprint(config.replace({"model.encoder_weights": str(saved)}))
    assert "encoder=" in before
    state = timm.models.load_state_dict(str(saved / "model.safetensors"))
    state["norm.bias"] += 1
    save_file(state, saved / "model.safetensors")
    after = fingerprint(config.replace({"model.encoder_weights": str(saved)}))
    assert differences(before, after) == ["encoder"]
    assert "encoder=" not in fingerprint(config)  # a tag names its weights itself


SHORT = {
    "data.budget": 4, "training.steps": 4, "training.warmup_steps": 2, "training.batch_size": 2,
    "runtime.checkpoint_every": 2, "model.encoder_weights": "none", "runtime.threads": 1,
}  # fmt: skip
METHODS = {
    "semidavil": {},
    "semivl": {
        "training.method": "semivl",
        "model.fusion": "vlga",
        "model.captions": "class_names",
    },
}


class DiedError(Exception):
    """Ends a run without a word, as a kill does."""


def losses_of(config: Config, folder: Path | None = None, stop_at: int = 0) -> list[float]:
    """Of every step; a run that dies after step `stop_at` is begun again."""
    found: dict[int, float] = {}

    def report(one: Report) -> None:
        found[one.step] = one.metrics["train/loss"]
        if one.step == stop_at:
            raise DiedError

    if stop_at:
        with pytest.raises(DiedError):
            train(config, report, folder)
        stop_at = 0
    train(config, report, folder)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["semidavil", "semivl"])
@pytest.mark.parametrize("encoder", ["timm:test_resnet", "timm:test_vit"])
def test_runs_are_repeatable_and_resumed_exactly(
    method: str, encoder: str, tiny_toy: dict[str, str], tmp_path: Path
) -> None:
    """With batch norm, whose statistics a checkpoint keeps, and without."""
    config = preset("toy", {**SHORT, **tiny_toy, "model.encoder": encoder, **METHODS[method]})
    whole = losses_of(config, tmp_path / "whole")
    assert losses_of(config, tmp_path / "stopped", stop_at=3) == whole
    assert whole != losses_of(config.replace({"seed": 1}))


def test_the_key_of_a_run_without_an_encoder_is_what_it_was() -> None:
    config = preset("toy")
    assert config.key() == config.replace({"model.encoder": "", "model.dense": "maskclip"}).key()
    assert config.key() != config.replace({"model.encoder": "timm:test_vit"}).key()


@pytest.mark.slow
@pytest.mark.parametrize("dense", ["naclip", "clearclip"])
def test_other_labels_of_patches_reach_captions_and_their_cache(
    dense: str, tiny_toy: dict[str, str]
) -> None:
    plain = load_vlm("toy", "bundled")
    other = load_vlm("toy", "bundled", dense=dense)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(other.embed(images), plain.vision.embed(images, dense))
    assert not torch.allclose(other.embed(images), plain.embed(images))
    identities = [Positions(vlm, ["road", "sky"]).identity for vlm in (plain, other)]
    assert identities[1] == f"{identities[0]} {dense}"
    config = preset("toy", {**SHORT, **tiny_toy, **METHODS["semivl"], "training.steps": 3})
    config = config.replace({"rivals.semivl_confidence": 0.1})  # which so small a CLIP reaches
    assert losses_of(config) != losses_of(config.replace({"model.dense": dense}))


def test_a_finished_run_predicts_without_the_weights_that_it_began_with(
    saved: Path, tiny_toy: dict[str, str], tmp_path: Path
) -> None:
    changes = {
        "model.encoder": "timm:test_vit",
        "model.fusion": "none",
        "training.method": "supervised",
    }
    begun = {**SHORT, **tiny_toy, **changes, "model.encoder_weights": str(saved)}
    train(preset("toy", begun), None, tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    before = Predictor.load(tmp_path / "run" / WEIGHTS, "cpu")(image)
    shutil.rmtree(saved)
    predictor = Predictor.load(tmp_path / "run" / WEIGHTS, "cpu")
    mean = predictor.network.vision.mean.flatten()
    torch.testing.assert_close(mean, torch.tensor([0.4, 0.5, 0.6]))  # of the weights that are gone
    assert np.array_equal(predictor(image).confidence, before.confidence)


def test_the_repositories_are_those_of_the_libraries() -> None:
    for name, tag in VLMS:
        assert open_clip_cfg(name, tag)["hf_hub"] == f"{REPOSITORIES[name, tag]}/"
    for name in VISION_ONLY:
        default = timm.models.get_pretrained_cfg(name)
        assert (
            timm.models.get_pretrained_cfg(f"{name}.{default.tag}").hf_hub_id
            == REPOSITORIES[f"timm:{name}", "default"]
        )
    assert len(REPOSITORIES) == len(VLMS) + len(VISION_ONLY)
