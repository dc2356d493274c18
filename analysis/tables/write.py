"""A table as Markdown and as LaTeX (booktabs)."""

from analysis.drawn import Entry, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "→": r"$\rightarrow$", "\N{EN DASH}": "--", "<": r"$<$", ">": r"$>$", "≥": r"$\geq$",
}  # fmt: skip


def markdown(table: Table) -> str:
    """GitHub's Markdown; a cell's second line is a line break."""
    lines = []
    for block in table.blocks:
        lines += [f"**{escape_markdown(block.title)}**", ""]
        lines.append(_markdown_row([escape_markdown(x) for x in (table.stub, *block.columns)]))
        lines.append("| --- |" + " ---: |" * len(block.columns))
        lines += [
            _markdown_row([escape_markdown(name), *map(_markdown_entry, entries)])
            for name, entries in block.rows
        ]
        lines.append("")
    return "\n".join([*lines, escape_markdown(table.caption), ""])


def _markdown_entry(entry: Entry) -> str:
    text = {"best": f"**{entry.text}**", "second": f"<u>{entry.text}</u>"}.get(
        entry.mark, entry.text
    )
    return f"{text}<br>*{entry.under}*" if entry.under else text


def _markdown_row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def escape_markdown(text: str) -> str:
    """As text: Markdown takes HTML too, which a name must not become."""
    for character in "\\|*_`[":
        text = text.replace(character, "\\" + character)
    return text.replace("<", "&lt;")


def latex(table: Table) -> str:
    r"""A `table*` environment; needs `\usepackage{booktabs}`. Published values are a row below."""
    width = max(len(block.columns) for block in table.blocks)
    lines = [
        r"\begin{table*}[t]",
        # Six budgets, each with its spread and number of seeds, would be wider than a page.
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * width}}}",
        r"\toprule",
    ]
    for i, block in enumerate(table.blocks):
        if i:
            lines.append(r"\midrule")
        title = rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{escape_latex(block.title)}}}}}"
        lines.append(title + r" \\")
        lines.append(_latex_row([table.stub, *block.columns], escape=True))
        lines.append(r"\midrule")
        for name, entries in block.rows:
            lines.append(_latex_row([escape_latex(name), *map(_latex_entry, entries)]))
            if any(entry.under for entry in entries):
                under = [rf"\textit{{{escape_latex(e.under)}}}" if e.under else "" for e in entries]
                lines.append(_latex_row([r"\quad published", *under]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _latex_entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    return {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(entry.mark, text)


def _latex_row(texts: list[str], escape: bool = False) -> str:
    return " & ".join(escape_latex(text) if escape else text for text in texts) + r" \\"


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)
