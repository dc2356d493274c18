"""The frame of figures: widths of a paper's columns, rows of two, texts that can be read."""

import itertools

import matplotlib.pyplot as plt
import pytest
from made_up_runs import Writer, settings
from matplotlib.text import Text
from slow_cases import also_slow

from analysis import style
from analysis.figures import FIGURES
from analysis.panels import SMALL, legend, panels
from analysis.runs import Tracked, load_runs
from analysis.style import paper_style
from semidavil.benchmarks import BENCHMARKS


@pytest.mark.parametrize(
    ("count", "rows", "width"), [(2, 1, 6.875), *also_slow((1, 1, 3.28), (5, 3, 6.875))]
)
def test_figures_are_exactly_as_wide_as_a_column_or_a_page(
    count: int, rows: int, width: float
) -> None:
    """Cut to their contents, they came out at 3.08 to 6.56 inches."""
    with paper_style():
        frame = panels([str(i) for i in range(count)], rows)
        for _, axes in frame:
            axes[0].plot([0, 1], label="a long name in the legend, which is outside")
        legend(frame.figure)
        frame.figure.canvas.draw()
    assert frame.figure.get_figwidth() == width
    assert len(frame.axes) == count
    lefts = {round(axes[0].get_subplotspec().colspan.start) for axes in frame.axes}
    assert lefts == ({0} if count == 1 else {0, 1})
    (below,) = frame.figure.legends
    lowest = min(ax.get_tightbbox().y0 for ax in frame.figure.axes)
    assert below.get_window_extent().y1 <= lowest + 1


@pytest.mark.slow
def test_seven_benchmarks_do_not_run_into_one_another(store: Writer) -> None:
    for (benchmark, known), fusion in itertools.product(BENCHMARKS.items(), ("dlg", "vlga")):
        if known.kind == "images":
            for budget in (100, 200):
                cell = settings(benchmark, budget, 0, model__fusion=fusion)
                store.run("attention", cell, {"miou": 30.0})
    with paper_style():
        figure = FIGURES["attention"](load_runs(store.uri)).figure
        figure.canvas.draw()
    texts = [t for t in figure.findobj(plt.Text) if t.get_text() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    boxes = [
        (text, box) for text, box in boxes if box.width and figure.bbox.contains(box.x0, box.y0)
    ]
    assert len(boxes) > 60
    for (text, one), (other_text, other) in itertools.combinations(boxes, 2):
        wide = min(one.x1, other.x1) - max(one.x0, other.x0)
        tall = min(one.y1, other.y1) - max(one.y0, other.y0)
        same = text == other_text and abs(one.x0 - other.x0) < 1  # of a shared axis
        assert same or min(wide, tall) < 3, f"{text!r} on {other_text!r}"


@pytest.mark.slow
def test_all_texts_can_be_read_and_no_colour_or_marker_stands_twice(tracked: Tracked) -> None:
    for name in ("attention", "methods", "qualitative", "confusion", "synapse", "pseudo_labels"):
        with paper_style():
            figure = FIGURES[name](tracked).figure
        texts = figure.findobj(plt.Text)
        assert min(t.get_fontsize() for t in texts if t.get_text()) >= SMALL, name


@pytest.mark.parametrize("name", ["encoders", "ranks"])
def test_names_beside_points_are_in_their_panel_and_stand_on_no_other(
    name: str, tracked: Tracked
) -> None:
    with paper_style():
        figure = FIGURES[name](tracked).figure
        figure.canvas.draw()
    for ax in figure.axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        assert len(boxes) > 2
        assert all(ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_markers_are_dodged_in_points_however_many_budgets_there_are(store: Writer) -> None:
    """Dodged by a share of the axis, six losses at one budget read as six budgets."""
    for loss in ("ce", "dyce", "focal"):
        store.run("losses", settings("gta5-cityscapes", 100, 0, loss__name=loss), {"miou": 30.0})
    with paper_style():
        figure = FIGURES["losses"](load_runs(store.uri)).figure
        figure.canvas.draw()
    measured = figure.axes[1]
    lines = [container.lines[0] for container in measured.containers]
    places = sorted(line.get_transform().transform((0, 30))[0] for line in lines)
    points = [place * 72 / figure.dpi for place in places]
    assert points[-1] - points[0] == pytest.approx(2 * 3.0)


def test_unknown_names_get_a_look_of_their_own(store: Writer) -> None:
    """Plugins: what is known of them is their name."""
    names = ["dlg", "mine.py:gated", "mine.py:other", "vlga"]
    looks = style.looks(names)
    assert len({look.colour for look in looks.values()}) == 4
    assert [look.label for look in looks.values()][1] == "mine.py:gated"
    same = style.looks(["blip2:a", "blip2:b"])
    assert [look.label for look in same.values()] == ["blip2:a", "blip2:b"]
    for fusion, seed in itertools.product(("dlg", "gated"), (0, 1)):
        cell = settings("mine-city", 7, seed, model__fusion=fusion, training__method="own")
        add_network_of_own(store, cell, 30.0 + seed + (fusion == "gated"))
    tracked = load_runs(store.uri)
    drawn = FIGURES["attention"](tracked)
    assert "gated" in drawn.verdicts[0]
    assert drawn.figure.axes[0].get_title(loc="left") == "mine → city (toy), 2 seeds"


def test_a_long_name_of_own_data_is_no_wider_than_its_panel(store: Writer) -> None:
    for fusion in ("dlg", "vlga"):
        cell = settings("carla-boulevard-by-night@83fa9c7b", 7, 0, model__fusion=fusion)
        store.run("attention", cell, {"miou": 30.0})
    with paper_style():
        figure = FIGURES["attention"](load_runs(store.uri)).figure
        figure.canvas.draw()
        (title,) = figure.findobj(lambda part: isinstance(part, Text) and "seed" in part.get_text())
        place = title.get_window_extent()
        assert place.x1 <= figure.bbox.x1
        assert place.y1 <= figure.bbox.y1


def add_network_of_own(store: Writer, cell: dict, miou: float) -> None:  # type: ignore[type-arg]
    store.run("attention", cell, {"miou": miou, "iou/quay": miou, "iou/water": miou})
