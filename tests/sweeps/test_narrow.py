"""Several values of a setting: which comma separates, what a short name stands for, which cells are left."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semidavil.config import ConfigError, preset
from sweeps.plan.combine import Selection
from sweeps.plan.grids import GRIDS
from sweeps.plan.narrow import narrowed, require_present, setting_of, values_of
from sweeps.plan.spec import Spec

TOY = preset("toy")
ATTENTION = GRIDS["attention"]


@pytest.mark.parametrize(
    ("path", "text", "values"),
    [
        ("training.lr", "1e-4, 3e-4", ["1e-4", "3e-4"]),
        ("data.crop", "16x16,32x32", ["16x16", "32x32"]),
        ("data.crop", "[16, 16],[32,32]", ["[16, 16]", "[32,32]"]),
        ("model.captions", '"hf:a,b",none', ["hf:a,b", "none"]),
        ("model.caption_prompt", "What, and where?", ["What, and where?"]),
        ("model.caption_prompt", '"What, now?","Where?"', ["What, now?", "Where?"]),
        ("runtime.data_root", "/a,b", ["/a,b"]),
        ("model.encoder", "", [""]),
    ],
)
def test_a_comma_separates_values_but_not_within_one(
    path: str, text: str, values: list[str]
) -> None:
    assert values_of(path, text) == values


@given(st.lists(st.text(st.characters(exclude_characters='\\"', min_codepoint=32)), min_size=1))
def test_quoted_texts_come_back_whatever_they_hold(texts: list[str]) -> None:
    written = ",".join(json.dumps(text, ensure_ascii=False) for text in texts)
    assert values_of("model.weights", written) == texts


@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=3, unique=True))
def test_a_swept_setting_multiplies_a_grid(rates: list[float]) -> None:
    text = ",".join(map(str, rates))
    spec = Spec("attention", "toy", swept=(f"training.lr={text}",))
    spec = Spec.from_json(spec.to_json())
    cells, grid = spec.cells(), spec.around(TOY)
    assert len(cells) == len(rates) * len(ATTENTION.cells(TOY))
    assert {cell.training.lr for cell in cells} == set(rates)
    assert len({grid.name(cell) for cell in cells}) == len(cells)
    assert spec.key() != Spec("attention", "toy").key()
    assert [grid.difference(cell) for cell in cells].count("") == 6  # one at each budget


def test_short_names_stand_for_settings() -> None:
    names = {"fusion": "model.fusion", "loss": "loss.name", "budget": "data.budget", "seed": "seed"}
    for name, path in names.items():
        assert setting_of(name, ATTENTION) == path
    assert setting_of("training.lr", ATTENTION) == "training.lr"
    # Of several, the one that the grid varies.
    assert setting_of("consistency_weight", GRIDS["loss_controls"]) == "training.consistency_weight"
    with pytest.raises(ConfigError, match=r"training\.lr or volumes\.lr"):
        setting_of("lr", ATTENTION)
    assert setting_of("lr", ATTENTION.sweeping(["training.lr"])) == "training.lr"


def test_only_leaves_the_cells_with_all_of_the_settings() -> None:
    cells = ATTENTION.cells(TOY, seeds=[0, 1])
    left = narrowed(cells, ["fusion=dlg,vlga", "budget=100", "seed=1"], ATTENTION)
    assert [(c.model.fusion, c.data.budget, c.seed) for c in left] == [
        ("dlg", 100, 1), ("vlga", 100, 1),
    ]  # fmt: skip
    components = GRIDS["components"].around(TOY)
    left = narrowed(components.cells(TOY), ["variant=nothing,released code"], components)
    assert {components.variant(cell) for cell in left} == {"nothing", "released code"}
    # As they are written: 0.5 and 5e-1 are one number.
    sensitivity = GRIDS["sensitivity"].around(TOY)
    assert narrowed(sensitivity.cells(TOY), ["omega=25e-2"], sensitivity)
    with pytest.raises(ConfigError, match="no run has budget=7: there are 0, 100"):
        require_present(cells, ["budget=7"], ATTENTION)


def test_an_overview_keeps_what_several_commands_have_asked_for() -> None:
    first = Spec("attention", "toy", selections=(Selection(only=("fusion=dlg", "budget=0")),))
    second = Spec("attention", "toy", selections=(Selection(budgets=(100,)),))
    assert first.key() == second.key()
    both = Spec.from_json(second.with_earlier(first).to_json())
    assert sorted((c.model.fusion, c.data.budget) for c in both.cells()) == [
        ("cross_attention", 100), ("dlg", 0), ("dlg", 100), ("vlga", 100), ("wpct", 100),
    ]  # fmt: skip
