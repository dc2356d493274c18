"""The published values against a second transcription, row by row as the supplement prints them."""

import pytest

from analysis import paper
from analysis.figures.synapse import ABBREVIATIONS

# Table 1: budgets 0, 100, 200, 500, 1000, 2975.
TABLE_1 = """
GTA5 -> Cityscapes
CE     66.9 70.3 71.6 72.1 73.9 74.4
WCE    64.3 69.4 70.5 71.8 72.7 73.3
DCE    67.1 70.5 71.6 72.3 73.3 74.7
FL     67.0 70.4 71.8 72.2 74.1 74.9
DFL    67.3 70.6 71.9 72.2 74.0 74.8
DyCE   67.7 71.1 72.5 72.9 74.8 75.2
SYNTHIA -> Cityscapes
CE     69.5 74.9 76.8 77.7 79.2 79.6
WCE    67.2 73.1 74.4 75.3 77.6 78.9
DCE    69.7 75.2 76.8 78.1 79.1 79.7
FL     69.8 75.4 76.9 78.0 79.3 79.7
DFL    69.9 75.7 77.0 78.2 78.9 79.8
DyCE   70.2 76.9 77.2 78.6 79.7 80.5
"""
# Table 2: budgets 100, 200, 500, 1000.
TABLE_2 = """
GTA5 -> Cityscapes
SemiVL     68.5 69.9 70.6 71.7
SemiDAViL  71.1 72.5 72.9 74.8
SYNTHIA -> Cityscapes
SemiVL     71.4 72.3 74.3 75.1
SemiDAViL  76.9 77.2 78.6 79.7
Cityscapes
SemiVL     76.2 77.9 80.2 80.4
SemiDAViL  77.1 78.2 81.4 81.6
"""
BENCHMARKS = {
    "GTA5 -> Cityscapes": "gta5-cityscapes", "SYNTHIA -> Cityscapes": "synthia-cityscapes",
    "Cityscapes": "cityscapes-cityscapes",
}  # fmt: skip


def read(
    text: str, budgets: tuple[int, ...], names: dict[str, str]
) -> dict[tuple[str, str, int], float]:
    found, benchmark = {}, ""
    for line in text.strip().splitlines():
        if line in BENCHMARKS:
            benchmark = BENCHMARKS[line]
            continue
        name, *values = line.split()
        variant = names.get(name, name.lower())
        found |= {(benchmark, variant, b): float(v) for b, v in zip(budgets, values, strict=True)}
    return found


@pytest.mark.parametrize(
    ("text", "budgets", "values", "count"),
    [
        (TABLE_1, (0, 100, 200, 500, 1000, 2975), paper.losses, 72),
        (TABLE_2, (100, 200, 500, 1000), paper.semivl, 24),
    ],
)
def test_tables_are_as_printed(text, budgets, values, count) -> None:  # type: ignore[no-untyped-def]
    points = values()
    assert len(points) == count
    expected = read(text, budgets, {"FL": "focal"})
    assert {(p.benchmark, p.variant, p.budget): p.miou for p in points} == expected
    assert {p.kind for p in points} == {"exact"}


def test_of_figure_1_two_values_are_stated_and_the_rest_is_read_off() -> None:
    points = paper.attention()
    kinds = {(p.benchmark, p.variant, p.budget): (p.miou, p.kind) for p in points}
    exact = {key: miou for key, (miou, kind) in kinds.items() if kind == "exact"}
    assert exact == {("gta5-cityscapes", "dlg", 0): 67.7, ("synthia-cityscapes", "dlg", 0): 70.2}
    loss_table = read(TABLE_1, (0, 100, 200, 500, 1000, 2975), {"DyCE": "dlg"})
    inferred = {key: miou for key, (miou, kind) in kinds.items() if kind == "inferred"}
    assert inferred == {k: v for k, v in loss_table.items() if k[1] == "dlg" and k[2]}
    # "+2.6 (GTA5), +4.4 (SYNTHIA)" over WPCT and "+1.4, +1.9" over VLGA at 0 labels.
    differences = {key: miou for key, (miou, kind) in kinds.items() if kind == "difference"}
    assert differences == {
        ("gta5-cityscapes", "wpct", 0): 65.1, ("synthia-cityscapes", "wpct", 0): 65.8,
        ("gta5-cityscapes", "vlga", 0): 66.3, ("synthia-cityscapes", "vlga", 0): 68.3,
    }  # fmt: skip
    # "up to" +3.6 over WPCT and +2.6 over VLGA at 2975 labels.
    bounds = {key: p.text for key, p in zip(kinds, points, strict=True) if p.kind == "bound"}
    assert bounds == {
        ("gta5-cityscapes", "wpct", 2975): "≥ 71.6", ("gta5-cityscapes", "vlga", 2975): "≥ 72.6",
        ("synthia-cityscapes", "wpct", 2975): "≥ 76.9", ("synthia-cityscapes", "vlga", 2975): "≥ 77.9",
    }  # fmt: skip
    assert [p.text for p in points if p.budget == 100] == ["71.1†", "76.9†"]


def test_gains_of_figures_2_and_3_are_as_worded() -> None:
    assert {(b, c): gain for b, gains in paper.CLASS_GAINS.items() for c, gain in gains.items()} == {
        ("gta5-cityscapes", "rider"): (2.3, 2.3), ("synthia-cityscapes", "rider"): (2.05, 2.05),
        **{("gta5-cityscapes", c): (1.8, 2.0) for c in ("bus", "truck", "wall")},
        **{("synthia-cityscapes", c): (1.8, 2.0) for c in ("bus", "wall")},  # it has no truck
        **{("gta5-cityscapes", c): (0.1, 0.4) for c in ("road", "building")},
        **{("synthia-cityscapes", c): (0.07, 0.09) for c in ("road", "building")},
    }  # fmt: skip
    over_half = {organ for organ, words in paper.SYNAPSE_GAINS.items() if words == "> 50%"}
    assert over_half == {"Ga", "Es", "LAG", "RAG"}
    assert set(paper.SYNAPSE_GAINS) - over_half == {"Li", "St"}


@pytest.mark.parametrize("name", ["uamt", "urpc"])
def test_published_means_of_scans_are_those_of_their_organs(name: str) -> None:
    known = paper.SYNAPSE_DHC[name]
    assert sum(known.dice) / 13 == pytest.approx(float(known.mean.split()[0]), abs=0.06)
    organs = dict(zip(ABBREVIATIONS.values(), known.dice, strict=True))
    assert {organs[name] for name in ("Ga", "Es", "RAG", "LAG")} == {0.0}
