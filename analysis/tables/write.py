r"""A table as Markdown and as LaTeX (booktabs, siunitx)."""

import unicodedata

from analysis.drawn import Entry, Table
from analysis.tables.entries import Shown, short_caption, shown

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "→": r"$\rightarrow$", "\N{EN DASH}": "--",
    "\N{EM DASH}": "---", "<": r"$<$", ">": r"$>$", "≥": r"$\geq$", "≤": r"$\leq$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "†": r"$^\dagger$",
    "\N{MINUS SIGN}": "$-$", "²": r"$^2$", "·": r"$\cdot$", "…": r"\dots{}", "“": "``", "”": "''",
    "\N{LEFT SINGLE QUOTATION MARK}": "`", "\N{RIGHT SINGLE QUOTATION MARK}": "'", "\u00a0": "~",
    "λ": r"$\lambda$", "ω": r"$\omega$", "τ": r"$\tau$", "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}", "Ł": r"\L{}",
}  # fmt: skip
# Combining accents as LaTeX puts them on the letter before.
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
            "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
            "\u0328": "k"}  # fmt: skip
PACKAGES = r"% needs \usepackage{booktabs,siunitx}"


def markdown(table: Table, how: Shown | None = None) -> str:
    """GitHub's Markdown; a cell's second line is a line break, which a screen reader is told of."""
    table = shown(table, how or Shown())
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
    told = (short_caption(table), " ".join([*table.verdicts, table.caption]))
    return "\n\n".join(["\n".join(lines), *map(escape_markdown, told), ""])


def _markdown_entry(entry: Entry) -> str:
    words = escape_markdown(entry.words)
    text = f"**{words}**" if entry.mark else words
    return f"{text}<br>*{escape_markdown(entry.under)}*" if entry.under else text


def _markdown_row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def escape_markdown(text: str) -> str:
    """As text: Markdown takes HTML too, which a name must not become."""
    for character in "\\|*_`[~$":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")


def latex(table: Table, how: Shown | None = None) -> str:
    r"""A `table*` environment (`table` for one column). Published values are a row below."""
    how = how or Shown()
    table = shown(table, how)
    width = max(len(block.columns) for block in table.blocks)
    environment = "table*" if how.columns == 2 else "table"
    specs = "".join(_column(table, i, how.decimals) for i in range(width))
    # What is wider than the page is made as wide as it: six budgets with their spreads are.
    begin = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    lines = [
        PACKAGES,
        *(f"% {escape_latex(line)}" for line in (*table.verdicts, table.caption) if line),
        rf"\begin{{{environment}}}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(short_caption(table))}}}",
        rf"\label{{tab:{table.name}}}",
        begin,
        rf"\begin{{tabular}}{{l{specs}}}",
        r"\toprule",
    ]
    for i, block in enumerate(table.blocks):
        if i:
            lines.append(r"\midrule")
        lines.append(
            rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{escape_latex(block.title)}}}}} \\"
        )
        lines.append(_latex_row([escape_latex(table.stub), *map(_text, block.columns)]))
        lines.append(r"\midrule")
        for name, entries in block.rows:
            lines.append(_latex_row([escape_latex(name), *map(_latex_entry, entries)]))
            if any(entry.under for entry in entries):
                under = [
                    rf"{{\textit{{{escape_latex(e.under)}}}}}" if e.under else "" for e in entries
                ]
                lines.append(_latex_row([r"\quad published", *under]))
    end = [r"\bottomrule", r"\end{tabular}}", rf"\end{{{environment}}}", ""]
    return "\n".join([*lines, *end])


def _column(table: Table, place: int, decimals: int) -> str:
    """Numbers stand on their decimal point, with room for the longest spread; texts in the middle."""
    numbers = [entry for block in table.blocks for entry in block.column(place) if entry.n]
    if not numbers:
        return "c"
    whole = max(len(entry.text.partition(".")[0]) for entry in numbers)
    tail = max((entry.tail for entry in numbers), key=len)
    room = rf",table-space-text-post={{{_tail(tail)}}}" if tail else ""
    return f"S[table-format={whole}.{decimals}{room}]"


def _tail(tail: str) -> str:
    return rf"{{\,\scriptsize {escape_latex(tail)}}}" if tail else ""


def _text(text: str) -> str:
    return f"{{{escape_latex(text)}}}"


def _latex_entry(entry: Entry) -> str:
    if not entry.n:
        return _text(entry.words) if entry.words else ""
    return (r"\bfseries " if entry.mark else "") + entry.text + _tail(entry.tail)


def _latex_row(texts: list[str]) -> str:
    return " & ".join(texts) + r" \\"


def escape_latex(text: str) -> str:
    """Text that pdfLaTeX sets as it stands; a character that it has no letter for is named by its code."""
    return "".join(map(_latex_character, text))


def _latex_character(character: str) -> str:
    if character in _LATEX or character.isascii():
        return " " if character == "\n" else _LATEX.get(character, character)
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        return rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    plain = unicodedata.normalize("NFKD", character)
    return plain if plain.isascii() else rf"\texttt{{U+{ord(character):04X}}}"
