from collections import Counter

import pytest

from semidavil.config import ConfigError, preset
from semidavil.data.benchmarks import BENCHMARKS
from semidavil.fusion import FUSIONS
from sweeps.grids import GRIDS, product, union

TOY = preset("toy")


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_holds_its_baseline_says_what_it_is_for_and_repeats_nothing(name: str) -> None:
    grid = GRIDS[name]
    cells = grid.cells(TOY)
    assert any(grid.difference(cell) == "" for cell in cells)
    for word in ("Question:", "Feeds:", "Cost:"):
        assert word in grid.about
    assert max(Counter(cell.key() for cell in cells).values()) == 1
    assert len({grid.name(cell) for cell in cells}) == len(cells)


def test_attention_on_toy_is_four_attentions_times_six_budgets() -> None:
    cells = GRIDS["attention"].cells(TOY)
    places = Counter((cell.model.fusion, cell.data.budget) for cell in cells)
    fusions = set(FUSIONS) - {"none"}
    assert set(places) == {(f, b) for f in fusions for b in (0, 100, 200, 500, 1000, 2975)}
    assert set(places.values()) == {1}
    assert {cell.data.benchmark for cell in cells} == {"gta5-cityscapes"}


def test_attention_at_full_scale_covers_both_benchmarks() -> None:
    cells = GRIDS["attention"].cells(preset("paper"), seeds=[0, 1, 2])
    assert Counter(cell.data.benchmark for cell in cells) == {
        "gta5-cityscapes": 72,
        "synthia-cityscapes": 72,
    }


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_grids_run_on_every_benchmark(name: str, benchmark: str) -> None:
    cells = GRIDS[name].cells(TOY, [benchmark])
    budgets = {cell.data.budget for cell in cells}
    assert budgets == set(BENCHMARKS[benchmark].budgets)


def test_source_only_is_one_cell_whatever_the_budgets() -> None:
    for budgets in ([0, 100, 500], [100, 500]):
        cells = GRIDS["baselines"].cells(TOY, budgets=budgets, seeds=[0, 1])
        alone = [cell for cell in cells if cell.training.method == "source_only"]
        assert [(cell.data.budget, cell.seed) for cell in alone] == [(0, 0), (0, 1)]


def test_target_only_has_no_cell_without_labels() -> None:
    cells = GRIDS["baselines"].cells(TOY, budgets=[0, 100])
    assert {c.data.budget for c in cells if c.training.method == "target_only"} == {100}


def test_budget_zero_is_no_cell_without_a_source() -> None:
    cells = GRIDS["attention"].cells(TOY, ["cityscapes-cityscapes"], [0, 100])
    assert {cell.data.budget for cell in cells} == {100}
    with pytest.raises(ConfigError, match="--budgets"):
        GRIDS["attention"].cells(TOY, ["cityscapes-cityscapes"], [0])


def test_an_unknown_benchmark_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="gta5-cityscapes"):
        GRIDS["attention"].cells(TOY, ["gta6-cityscapes"])


def test_product_and_union() -> None:
    cells = product(TOY, {"seed": [0, 1], "model.fusion": ["dlg", "vlga"]})
    assert [(c.seed, c.model.fusion) for c in cells] == [
        (0, "dlg"), (0, "vlga"), (1, "dlg"), (1, "vlga"),
    ]  # fmt: skip
    again = product(TOY, {"seed": [2, 1], "model.fusion": ["dlg"]})
    assert union(cells, again) == [*cells, again[0]]


def test_names_and_differences() -> None:
    grid = GRIDS["attention"]
    cell = TOY.replace({"model.fusion": "vlga", "data.budget": 200, "seed": 3})
    assert grid.name(cell) == "gta5-cityscapes/vlga/200/s3"
    assert grid.difference(cell) == "fusion=vlga"
