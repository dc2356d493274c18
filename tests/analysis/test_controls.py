"""The tables of controls, and what a comparison says of parameters, time and shared settings."""

from functools import partial

import pytest
from made_up_runs import Writer, add_controls, settings

from analysis.runs import load_runs
from analysis.tables import TABLES
from analysis.tables.entries import Shown, short_caption, shown
from analysis.tables.write import latex, markdown

SEEDS = (0, 1, 2)


@pytest.fixture
def controlled(store: Writer) -> Writer:
    add_controls(store, SEEDS)
    return store


def test_attentions_beside_the_readout_with_nothing_to_read(controlled: Writer) -> None:
    table = shown(TABLES["attention_controls"](load_runs(controlled.uri)), Shown())
    (block,) = table.blocks
    assert block.columns == ("mIoU", "over blank", "M par.", "ms")
    assert "100 labels" in block.title
    rows = {name: [entry.words for entry in entries] for name, entries in block.rows}
    # Every seed is three points above: there is no spread of the difference, and so no interval.
    assert rows["DLG (SemiDAViL)"] == ["34.0 ± 1.0", "+3.0", "3.00", "11.0"]
    assert rows["Blank (readout alone)"] == ["31.0 ± 1.0", "", "1.50", "11.0"]
    assert rows["None"][1] == "-1.0"
    assert "nothing to read" in table.caption
    assert table.numbers.set_index("variant").loc["wpct", "parameters"] == 2e6
    assert "over blank" in markdown(table)
    assert "over blank" in latex(table)
    assert "whatever else its machine ran" in short_caption(table)
    assert "machine" not in short_caption(TABLES["loss_controls"](load_runs(controlled.uri)))


def test_losses_three_ways(controlled: Writer) -> None:
    table = shown(TABLES["loss_controls"](load_runs(controlled.uri)), Shown())
    (block,) = table.blocks
    assert block.columns == (
        "one λ", "over CE", "matched λ", "over CE", "no consistency", "over CE",
    )  # fmt: skip
    (_, ce), (_, dyce) = block.rows
    assert [entry.text for entry in ce[1::2]] == ["", "", ""]
    assert [entry.words for entry in dyce[::4]] == ["34.0 ± 1.0", "30.0 ± 1.0"]
    assert dyce[1].text == "+3.0"
    assert dyce[3].text.startswith("+1.1 [0.9, 1.3]")  # 1.0, 1.1 and 1.2: t = 4.303, sd 0.1
    assert dyce[5].text == "-1.0"
    assert set(table.numbers["way"]) == {"paper", "matched", "alone"}


def test_the_attention_table_shows_parameters_and_milliseconds(store: Writer) -> None:
    for name, millions, latency in (("dlg", 3.0, 12.0), ("wpct", 2.0, 9.0)):
        for seed in SEEDS:
            cell = settings("gta5-cityscapes", 100, seed, model__fusion=name)
            final = {"miou": 30.0 + seed, "parameters": 1e6 * millions, "latency_ms": latency}
            store.run("attention", cell, final)
    table = TABLES["attention"](load_runs(store.uri))
    (block,) = table.blocks
    assert block.columns[-2:] == ("M par.", "ms")
    rows = {name: [entry.text for entry in entries[-2:]] for name, entries in block.rows}
    assert rows["DLG (SemiDAViL)"] == ["3.00", "12.0"]
    assert rows["WPCT (LSeg)"] == ["2.00", "9.0"]
    # Runs beside one another on a machine slow each other: whoever reads the number is told.
    assert "whatever else its machine ran" in latex(table).partition(r"\caption{")[2]


def test_a_table_of_methods_says_what_they_share_and_what_is_their_own(store: Writer) -> None:
    add = partial(settings, "gta5-cityscapes", 100, 0, data__crop="[64, 64]")
    store.run("methods", add(training__method="semidavil"), {"miou": 30.0})
    rival = add(training__method="semivl", loss__name="ce")
    store.run("methods", rival, {"miou": 29.0})
    caption = TABLES["methods"](load_runs(store.uri)).caption
    shared, own = caption.split("Shared by all: ")[1].split(" Their own: ")
    assert "crop 64x64" in shared
    assert "learning rate 0.0001" in shared
    assert "loss" not in shared
    assert own.startswith("SemiVL learning rate 5e-05, of it for the encoder 0.1")
