"""The Config: validation, identity, round trips."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import PRESETS, Config, ConfigError, preset
from semidavil.losses import LOSSES
from semidavil.models.fusion import FUSIONS

configs = st.fixed_dictionaries(
    {},
    optional={
        "data.benchmark": st.sampled_from([b for b in BENCHMARKS if BENCHMARKS[b].source]),
        "data.budget": st.integers(0, 5000),
        "data.source_size": st.tuples(st.integers(512, 900), st.integers(512, 900)).map(list),
        "model.fusion": st.sampled_from(list(FUSIONS)),
        "model.weights": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        "loss.name": st.sampled_from(list(LOSSES)),
        "loss.hard_fraction": st.floats(1e-6, 1),
        "loss.omega": st.floats(0, 1),
        "training.lr": st.floats(1e-12, 1e3),
        "training.amp": st.booleans(),
        "training.steps": st.integers(1, 10**9),
        "runtime.num_workers": st.integers(0, 64),
        "seed": st.integers(0, 2**31 - 1),
    },
).map(lambda changes: Config().replace(changes))


@settings(max_examples=60, deadline=None)
@given(config=configs)
def test_params_round_trip_without_loss(config: Config) -> None:
    params = config.to_params()
    assert all(isinstance(value, str) for value in params.values())
    shuffled = dict(reversed(list(params.items())))
    restored = Config.from_params(json.loads(json.dumps(shuffled)))
    assert restored == config
    assert restored.key() == config.key()


@settings(max_examples=60, deadline=None)
@given(first=configs, second=configs)
def test_keys_are_equal_exactly_when_results_are(first: Config, second: Config) -> None:
    assert (first.key() == second.key()) == (not first.differences(second))


def test_the_key_is_the_same_in_every_process() -> None:
    script = (
        "from semidavil.config import preset;"
        "print(preset('toy', {'training.lr': '3e-4', 'seed': 4}).key())"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {preset("toy", {"seed": "4", "training.lr": 0.0003}).key()}


def test_known_keys_do_not_change() -> None:
    """Finished runs are found by key: changing these needs a new RESULTS_VERSION, and says so."""
    changed = Config().replace({"model.fusion": "vlga", "training.lr": 3e-4, "seed": 1})
    assert changed.key() == "aaf24b8ec437d018"


def test_settings_of_a_new_method_are_in_its_own_keys_alone() -> None:
    """Presets adapt them: without this, no finished run of another method would be found again."""
    assert preset("toy").key() == "c91e16690f238a5a"
    changes = {"rivals.unimatch_v2_lr": 0.5}
    for name in ("semidavil", "unimatch", "semivl"):
        config = preset("toy", {"training.method": name})
        changed = config.replace(changes)
        assert changed.key() == config.key()
        assert not changed.differences(config)
    config = preset("toy", {"training.method": "unimatch_v2"})
    changed = config.replace(changes)
    assert changed.key() != config.key()
    assert changed.differences(config) == {"rivals.unimatch_v2_lr": (0.5, 0.006)}
    assert "training.method" in config.differences(preset("toy"))
    assert "training.method" in preset("toy").differences(config)


def test_a_prompt_is_a_part_of_the_key_and_only_for_captioners_that_are_asked() -> None:
    plain = preset("paper", {"model.captions": "hf:own"})
    asked = plain.replace({"model.caption_prompt": "What is where?"})
    assert asked.key() != plain.key() == plain.replace({"model.caption_prompt": ""}).key()
    assert asked.replace({"model.captions": "shuffled:hf:own"}).model.caption_prompt
    for captions in ("positions", "class_names", "blip2:own", "shuffled:blip2:own"):
        with pytest.raises(
            ConfigError, match=r"model\.caption_prompt is what captioners of the kind"
        ):
            asked.replace({"model.captions": captions})


def test_runtime_is_not_part_of_the_key() -> None:
    config = preset("toy")
    moved = config.replace(
        {"runtime.num_workers": 3, "runtime.device": "cpu", "runtime.data_root": "/elsewhere"}
    )
    assert moved.key() == config.key()
    assert moved != config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_distinct(name: str) -> None:
    assert preset(name).to_params()
    assert sum(preset(other).key() == preset(name).key() for other in PRESETS) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.fusion": "dgl"}, "dlg, vlga, wpct, cross_attention, none"),
        ({"loss.name": "hinge"}, "dyce"),
        ({"data.benchmark": "mars"}, "gta5-cityscapes"),
        ({"training.method": "magic"}, "source_only"),
        ({"training.lrr": 1}, "did you mean training.lr"),
        ({"training.lr": "fast"}, "training.lr='fast' cannot be read"),
        ({"training.lr": "-1"}, "greater than 0"),
        ({"training.lr": "NaN"}, "training.lr"),
        ({"loss.omega": 1.5}, "loss.omega"),
        ({"data.budget": -1}, "data.budget"),
        ({"model.vlm": ""}, "model.vlm"),
        ({"data.budget": 1.5}, "data.budget"),
        ({"data.crop": "600x600"}, "data.crop (600, 600) does not fit into data.target_size"),
        ({"data.crop": "600"}, "data.crop"),
        ({"training.warmup_steps": 50_000}, "fewer than training.steps"),
        ({"training.method": "target_only", "data.budget": 0}, "nothing to learn from"),
        ({"data.benchmark": "cityscapes-cityscapes", "data.budget": 0}, "nothing to learn from"),
        ({"seed": 2**31}, "seed"),
        ({"model.decoder_dim": 4}, "model.decoder_dim: Input should be greater than or equal to 8"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config().replace(changes)
    assert message in str(refusal.value)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="paper, small, toy"):
        preset("huge")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        preset("toy").seed = 1


def test_text_and_values_mean_the_same() -> None:
    texts = {"data.crop": "256x128", "training.amp": "False", "training.steps": "20"}
    values = {"data.crop": [256, 128], "training.amp": False, "training.steps": 20}
    assert Config().replace(texts) == Config().replace(values)
    assert Config().replace(texts).data.crop == (256, 128)


def test_a_changed_copy_shares_the_sections_that_stay() -> None:
    base = preset("toy")
    copy = base.replace({"training.lr": 0.5, "seed": 3})
    assert copy.model is base.model
    assert (copy.training.lr, copy.seed, base.training.lr, base.seed) == (0.5, 3, 0.006, 0)
