from collections import Counter
from itertools import combinations
from itertools import product as product_of
from typing import Any

import pytest

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import ConfigError, preset
from semidavil.names import FUSIONS, LOSSES
from sweeps.plan.combine import product, union
from sweeps.plan.grids import GRIDS, SENSITIVITY
from sweeps.run.preparation import preparation_of

TOY = preset("toy")


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_holds_its_baseline_says_what_it_is_for_and_repeats_nothing(name: str) -> None:
    grid = GRIDS[name].around(TOY)
    cells = grid.cells(TOY)
    assert any(grid.difference(cell) == "" for cell in cells)
    for word in ("Question:", "Feeds:", "Cost:"):
        assert word in grid.about
    assert max(Counter(cell.key() for cell in cells).values()) == 1
    assert len({grid.name(cell) for cell in cells}) == len(cells)


def test_attention_on_toy_is_four_attentions_times_six_budgets() -> None:
    cells = GRIDS["attention"].cells(TOY)
    places = Counter((cell.model.fusion, cell.data.budget) for cell in cells)
    attentions = set(FUSIONS) - {"none", "blank"}
    assert set(places) == set(product_of(attentions, (0, 100, 200, 500, 1000, 2975)))
    assert set(places.values()) == {1}
    assert {cell.data.benchmark for cell in cells} == {"gta5-cityscapes"}


def test_controls_stand_beside_the_attentions_own_runs() -> None:
    controls = {c.model.fusion: c.key() for c in GRIDS["attention_controls"].cells(TOY)}
    assert set(controls) == set(FUSIONS)
    shared = {c.key() for c in GRIDS["attention"].cells(TOY, budgets=[100])}
    assert shared == {key for name, key in controls.items() if name not in ("none", "blank")}


def test_encoders_with_language_and_without_differ_in_nothing_else() -> None:
    grid = GRIDS["encoders"].around(TOY)
    cells = grid.cells(TOY)
    assert {grid.variant(c) for c in cells} == {
        f"{name}+{fusion}"
        for name in ("toy", "toy (random)", "test_vit (random)", "test_resnet (random)")
        for fusion in ("dlg", "none")
    }
    controls = {c.key() for c in GRIDS["attention_controls"].cells(TOY)}
    assert len({c.key() for c in cells} & controls) == 2
    changed = {name for cell in cells for name in cells[0].differences(cell)}
    assert changed == {
        "model.fusion", "model.vision_init", "model.encoder", "model.encoder_weights",
    }  # fmt: skip


def test_real_encoders_are_named_as_their_libraries_have_them() -> None:
    import open_clip
    import timm

    paper = preset("paper")
    cells = GRIDS["encoders"].cells(paper)
    assert len(cells) == 2 * 12
    for cell in cells:
        if name := cell.model.encoder.removeprefix("timm:"):
            assert timm.get_pretrained_cfg(name).tag
        else:
            assert cell.model.weights in open_clip.list_pretrained_tags_by_model(cell.model.vlm)
    # A user's own weights stand beside them.
    own = paper.replace(
        {"model.encoder": "timm:resnet50", "model.encoder_weights": "/a/mine.safetensors"}
    )
    grid = GRIDS["encoders"].around(own)
    names = {grid.variant(cell) for cell in grid.cells(own)}
    assert names == {"resnet50:mine+dlg", "resnet50:mine+none"} | {
        GRIDS["encoders"].around(paper).variant(cell) for cell in cells
    }


def test_every_loss_is_compared_three_ways_that_change_nothing_else() -> None:
    cells = GRIDS["loss_controls"].cells(TOY)
    for name in LOSSES:
        paper, matched, alone = (
            cell
            for way in ("paper", "matched", "alone")
            for cell in cells
            if GRIDS["loss_controls"].around(TOY).variant(cell) == f"{name}-{way}"
        )
        assert set(paper.differences(matched)) == {"training.consistency_scale"}
        assert set(paper.differences(alone)) == {"training.consistency_weight"}
        assert paper.key() in {cell.key() for cell in GRIDS["losses"].cells(TOY)}
    assert len(cells) == 3 * len(LOSSES)


@pytest.mark.parametrize("name", ["attention", "losses", "baselines"])
@pytest.mark.parametrize("benchmark", [n for n, b in BENCHMARKS.items() if b.kind == "images"])
def test_grids_over_budgets_take_each_benchmarks_own(name: str, benchmark: str) -> None:
    cells = GRIDS[name].cells(TOY, [benchmark])
    assert {cell.data.budget for cell in cells} == set(BENCHMARKS[benchmark].budgets)


def places(name: str, **options: Any) -> Counter[tuple[str, int]]:
    grid = GRIDS[name].around(TOY)
    return Counter((grid.variant(c), c.data.budget) for c in grid.cells(TOY, **options))


def test_the_papers_other_tables_cell_by_cell() -> None:
    losses = {"dyce", "ce", "wce", "focal", "dce", "dfl"}
    assert set(places("losses")) == set(product_of(losses, (0, 100, 200, 500, 1000, 2975)))
    assert set(places("semivl")) == set(product_of(("semidavil", "semivl"), (100, 200, 500, 1000)))
    rivals = {
        "target_only", "supervised", "unimatch", "unimatch_v2", "sdepth", "semivl", "semidavil",
    }  # fmt: skip
    assert set(places("methods")) == {("source_only", 0), *product_of(rivals, (100,))}
    assert set(places("synapse")) == {
        (f"{m}+{x}", 4) for m, x in product_of(("uamt", "urpc"), ("ce", "dyce"))
    }
    full = GRIDS["semivl"].cells(preset("paper"))
    assert {c.data.benchmark for c in full} == {
        "gta5-cityscapes", "synthia-cityscapes", "cityscapes-cityscapes",
    }  # fmt: skip
    assert set(places("semivl", benchmarks=["cityscapes-cityscapes"])) == set(places("semivl"))


def test_components_are_every_combination_of_the_four_parts() -> None:
    names = {name for name, _ in places("components")}
    parts = ("VL", "DLG", "CT", "DyCE")
    expected = {"+".join(c) or "nothing" for n in range(5) for c in combinations(parts, n)}
    assert names == expected | {"released code"}
    grid = GRIDS["components"].around(TOY)
    (bare,) = [c for c in grid.cells(TOY) if grid.variant(c) == "nothing"]
    assert (bare.model.vision_init, bare.model.fusion, bare.loss.name) == ("random", "none", "ce")
    assert bare.training.consistency_weight == 0
    assert grid.difference(bare).count(",") == 3
    (released,) = [c for c in grid.cells(TOY) if grid.variant(c) == "released code"]
    (whole,) = [c for c in grid.cells(TOY) if grid.variant(c) == "VL+DLG+CT+DyCE"]
    assert set(released.differences(whole)) == {"training.method"}


def test_semi_supervised_budgets_are_asked_for_and_are_no_benchmarks_own() -> None:
    here = BENCHMARKS["cityscapes-cityscapes"]
    assert here.ssl_budgets == (186, 372, 744, 1488)
    assert not set(here.ssl_budgets) & set(here.budgets)
    # 1/16 to 1/2 of the training images, as these papers round them.
    assert [round(here.budgets[-1] / n) for n in here.ssl_budgets] == [16, 8, 4, 2]
    cells = GRIDS["methods"].cells(TOY, ["cityscapes-cityscapes"], here.ssl_budgets)
    assert {cell.data.budget for cell in cells} == set(here.ssl_budgets)
    assert {cell.data.budget for cell in GRIDS["attention"].cells(TOY, [here.name])} == {
        100, 200, 500, 1000, 2975,
    }  # fmt: skip


def test_sensitivity_changes_one_setting_at_a_time() -> None:
    cells = GRIDS["sensitivity"].cells(TOY)
    changed = [len(cell.differences(cells[0])) for cell in cells]
    assert changed[0] == 0
    assert set(changed[1:]) == {1}
    assert {path for cell in cells[1:] for path in cell.differences(cells[0])} == set(SENSITIVITY)


def test_rivals_bring_their_own_recipe() -> None:
    cells = {c.training.method: c for c in GRIDS["methods"].cells(TOY)}
    assert cells["semivl"].model.fusion == "vlga"
    assert cells["semivl"].model.captions == "class_names"
    assert cells["sdepth"].data.selection == "depth"
    assert {cells[name].loss.name for name in ("semivl", "unimatch", "unimatch_v2", "sdepth")} == {
        "ce"
    }
    assert cells["semidavil"].key() == TOY.replace({"data.budget": 100}).key()


def test_the_oracle_is_marked_wherever_variants_are_named() -> None:
    grid = GRIDS["captions"]
    assert {grid.variant(cell) for cell in grid.cells(TOY)} == {
        "positions", "none", "class_names", "shuffled:positions", "oracle (bound)",
        "positions (windows)",
    }  # fmt: skip


def test_captions_are_compared_to_those_of_the_preset() -> None:
    blip = "blip:Salesforce/blip-image-captioning-base"
    blip2 = "blip2:Salesforce/blip2-opt-2.7b"
    for name, own in (("small", "positions"), ("paper", blip2)):
        base = preset(name)
        grid = GRIDS["captions"].around(base)
        differences = {grid.variant(cell): grid.difference(cell) for cell in grid.cells(base)}
        assert set(differences) == {
            "positions", "none", "class_names", f"shuffled:{own}", "oracle (bound)",
            f"{own} (windows)", blip, blip2,
        }  # fmt: skip
        assert [variant for variant, text in differences.items() if not text] == [own]
        assert differences[f"{own} (windows)"] == "caption_region=window"


def test_a_prompt_is_for_the_captioner_of_the_preset_alone() -> None:
    base = preset("small", {"model.captions": "hf:own", "model.caption_prompt": "What is where?"})
    grid = GRIDS["captions"].around(base)
    cells = {grid.variant(cell): cell for cell in grid.cells(base)}
    asked = {name for name, cell in cells.items() if cell.model.caption_prompt}
    own = 'hf:own, asked "What is where?"'
    assert asked == {own, f"{own} (windows)", f"shuffled:{own}"}
    assert {"positions", "none", "oracle (bound)"} < cells.keys()
    assert grid.difference(cells[own]) == ""
    methods = {c.training.method: c.model.caption_prompt for c in GRIDS["methods"].cells(base)}
    assert methods["semidavil"] == "What is where?"
    assert methods["semivl"] == ""
    assert preparation_of(base) != preparation_of(base.replace({"model.caption_prompt": ""}))


def test_sdepth_is_a_cell_where_there_is_depth() -> None:
    def has_sdepth(benchmark: str, **changes: str) -> bool:
        cells = GRIDS["methods"].cells(preset("small", changes), [benchmark], [50])
        return "sdepth" in {c.training.method for c in cells}

    assert has_sdepth("gta5-cityscapes")
    assert not has_sdepth("idda-camvid")
    assert has_sdepth("idda-camvid", **{"data.depth": "hf:Intel/dpt-large"})


def test_a_grid_of_images_is_refused_on_volumes() -> None:
    with pytest.raises(ConfigError, match="uamt, urpc"):
        GRIDS["attention"].cells(TOY, ["synapse"])
    with pytest.raises(ConfigError, match="semidavil"):
        GRIDS["synapse"].cells(TOY, ["gta5-cityscapes"])


def test_source_only_is_one_cell_whatever_the_budgets() -> None:
    for budgets in ([0, 100, 500], [100, 500]):
        cells = GRIDS["baselines"].cells(TOY, budgets=budgets, seeds=[0, 1])
        alone = [cell for cell in cells if cell.training.method == "source_only"]
        assert [(cell.data.budget, cell.seed) for cell in alone] == [(0, 0), (0, 1)]


def test_budget_zero_is_no_cell_without_a_source() -> None:
    cells = GRIDS["attention"].cells(TOY, ["cityscapes-cityscapes"], [0, 100])
    assert {cell.data.budget for cell in cells} == {100}
    with pytest.raises(ConfigError, match="--budgets"):
        GRIDS["attention"].cells(TOY, ["cityscapes-cityscapes"], [0])


def test_product_and_union() -> None:
    cells = product(TOY, {"seed": [0, 1], "model.fusion": ["dlg", "vlga"]})
    assert [(c.seed, c.model.fusion) for c in cells] == [
        (0, "dlg"), (0, "vlga"), (1, "dlg"), (1, "vlga"),
    ]  # fmt: skip
    again = product(TOY, {"seed": [2, 1], "model.fusion": ["dlg"]})
    assert union(cells, again) == [*cells, again[0]]
