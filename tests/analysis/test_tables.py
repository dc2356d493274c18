"""What tables look like: Markdown, LaTeX that compiles, pictures whose texts keep apart, options."""

import itertools
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from made_up_runs import Writer, settings

from analysis.drawn import Block, Entry, Table
from analysis.runs import load_runs
from analysis.style import paper_style
from analysis.tables import TABLES
from analysis.tables.entries import DASH, Shown, short_caption, shown
from analysis.tables.picture import picture
from analysis.tables.write import escape_latex, latex, markdown

STRANGE = "ω 中 ≤ \N{MINUS SIGN} ² | \\ é ñ ß \u00a0 \N{EN DASH} “x” <a> ~ ^ $5 #1 100% {c} 😀"
ROW = (
    Entry(under="≥ 2.0", mark=True, value=1.04, std=0.12, n=3),
    Entry(value=30.0, n=1),
    Entry("2.5"),
    Entry(DASH, under="70.1"),
)
TABLE = Table(
    name="t",
    title="T",
    about="What it is.",
    caption=STRANGE,
    stub="Xœ",
    blocks=(Block(STRANGE, ("0", "1,000", "rank (n=6)", "ms"), (("A_b|", ROW), (STRANGE, ROW))),),
    numbers=pd.DataFrame(),
    run_ids=(),
    grid="g",
    verdicts=("One line.",),
)


def test_markdown_says_what_is_marked_and_breaks_at_no_name() -> None:
    text = markdown(TABLE)
    assert rf"| A\_b\| | **1.0 ± 0.1**<br>*≥ 2.0* | 30.0 (1) | 2.5 | {DASH}<br>*70.1* |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}


def test_options_leave_out_published_values_and_ranks() -> None:
    text = latex(TABLE, Shown(published=False, rank=False, decimals=2, columns=1))
    assert r"\begin{table}" in text
    assert "rank" not in text
    assert "published" not in text.replace("Below: published", "")
    assert r"\bfseries 1.04{\,\scriptsize $\pm$ 0.12} & 30.00{\,\scriptsize (1)} & {--}" in text
    assert "Below" not in short_caption(shown(TABLE, Shown(published=False)))
    whole = latex(TABLE)
    assert r"\quad published & {\textit{$\geq$ 2.0}} &  &  & {\textit{70.1}} \\" in whole
    assert "rank (n=6)" in whole


def test_latex_has_ascii_alone_and_each_number_on_its_point() -> None:
    text = latex(TABLE)
    assert text.isascii()
    assert text.count("S[table-format=") == 2
    assert escape_latex("ω ≤ é ß") == r"$\omega$ $\leq$ \'{e} \ss{}"
    assert escape_latex("中") == r"\texttt{U+4E2D}"


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2])
def test_latex_compiles(columns: int, tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex")
    styles = subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True) if compiler else None
    if styles is None or styles.returncode:
        pytest.skip("apt-get install texlive-latex-recommended texlive-science")
    page = (
        r"\documentclass[twocolumn]{article}\usepackage{booktabs,siunitx,graphicx}"
        r"\begin{document}\input{t.tex}\end{document}"
    )
    (tmp_path / "t.tex").write_text(latex(TABLE, Shown(columns=columns)))
    (tmp_path / "page.tex").write_text(page)
    command = [str(compiler), "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_no_text_of_a_picture_stands_on_another() -> None:
    """A row of bold cells had no gap, and a long name ran under the numbers."""
    wide = Entry(under="≥ 72.6", mark=True, value=50.23, std=10.31, n=8)
    rows = tuple((f"A variant with a long name, number {i}", (wide,) * 8) for i in range(3))
    columns = (*(f"{b:,}" for b in (0, 100, 200, 500, 1000, 2975)), "rank (n=48)", "M par.")
    table = replace(TABLE, blocks=(Block("GTA5 → Cityscapes", columns, rows),))
    with paper_style():
        figure = picture(shown(table, Shown()))
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    assert len(boxes) > 50
    for one, other in itertools.combinations(boxes, 2):
        over = (
            min(one.x1, other.x1) - max(one.x0, other.x0),
            min(one.y1, other.y1) - max(one.y0, other.y0),
        )
        assert min(over) < 1, "pixels"
    page = figure.bbox
    assert all(box.x0 >= 0 and box.x1 <= page.width for box in boxes)
    plt.close(figure)


def test_captions_of_papers_are_short(store: Writer) -> None:
    for fusion, seed in itertools.product(("dlg", "vlga"), range(5)):
        cell = settings("gta5-cityscapes", 100, seed, model__fusion=fusion)
        miou = 30.0 + 5 * (fusion == "dlg") + 0.1 * seed * seed
        score = miou + 0.01 * seed * (fusion == "dlg")
        store.run("attention", cell, {"miou": score, "parameters": 1e6, "latency_ms": 9.0})
    table = shown(TABLES["attention"](load_runs(store.uri)), Shown())
    caption = short_caption(table)
    assert len(caption.split()) <= 70
    assert "5 seeds" in caption
    assert "Bold" in caption
    assert "Rank: mean over n pairs" in caption
    assert [row[1][1].mark for row in table.blocks[0].rows[:2]] == [True, False]
    verdict = "GTA5 → Cityscapes (toy): DLG (SemiDAViL) is best at 100 labels: +5.0 "
    assert table.verdicts[0].startswith(verdict)
    for text in (markdown(table), latex(table)):  # told once
        assert text.count("is best at 100 labels") == 1
