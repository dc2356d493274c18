"""Every table: a function from the tracked runs, and a line in `TABLES`."""

from functools import partial

from analysis.drawn import MakeTable
from analysis.tables import budget_table, controls, semi_supervised

TABLES: dict[str, MakeTable] = {
    name: partial(budget_table.make, name=name)
    for name in ("attention", "losses", "semivl", "methods", "baselines")
} | {
    "attention_controls": controls.attention_controls,
    "loss_controls": controls.loss_controls,
    "ssl": semi_supervised.make,
}
