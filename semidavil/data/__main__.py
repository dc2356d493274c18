"""Checks data sets and prints what is in them.

python -m semidavil.data --data-root DIR
python -m semidavil.data --toy
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from semidavil.data.benchmarks import LABEL_IDS
from semidavil.data.checks import Scan, describe
from semidavil.data.readers import READERS, DataError
from semidavil.data.toy import ensure_toy_data

console = Console()


def main(
    data_root: Annotated[
        Path | None,
        typer.Option(envvar="SEMIDAVIL_DATA_ROOT", help="Folder that holds a folder per data set."),
    ] = None,
    toy: Annotated[bool, typer.Option("--toy", help="The generated toy data.")] = False,
    dataset: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(READERS)}. [default: all there]")
    ] = None,
    cache_dir: Annotated[Path, typer.Option(help="Where outcomes are kept.")] = Path("data"),
) -> None:
    """Reads every image and label once: counts, sizes, class frequencies, and what is wrong."""
    try:
        root = ensure_toy_data(cache_dir / "toy") if toy else data_root
        if root is None:
            raise DataError("pass --data-root with a folder that holds one per data set, or --toy")
        unknown = [name for name in dataset or () if name not in READERS]
        if unknown:
            raise DataError(f"unknown data set {unknown[0]!r}: choose from {', '.join(READERS)}")
        names = dataset or [name for name in READERS if (root / name).is_dir()]
        if not names:
            raise DataError(f"no data set in {root}: expected folders named {', '.join(READERS)}")
        broken = False
        for name in names:
            for split, found in describe(name, (root / name).absolute(), cache_dir).items():
                _print(name, split, found)
                broken |= bool(found.errors)
                broken |= bool(found.mismatched) and not READERS[name].drop_size_mismatch
    except DataError as error:
        console.print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    if broken:
        raise typer.Exit(1)


def _print(name: str, split: str, found: Scan) -> None:
    sizes = sorted(found.sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:4])
    more = f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""
    console.print(f"[bold]{name}, {split}[/]: {found.count} images; height x width {shown}{more}")
    table = Table("class", "label ids")
    for column in ("% of pixels", "images", "% of images"):
        table.add_column(column, justify="right")
    total = sum(found.pixels.values()) or 1
    names: dict[str, list[int]] = {}
    for raw in sorted(found.pixels):
        what = LABEL_IDS[name].get(raw, "unknown") or "(ignored)"
        names.setdefault(what, []).append(raw)
    for what, ids in names.items():
        share = 100 * sum(found.pixels[raw] for raw in ids) / total
        images = max(found.images[raw] for raw in ids)
        of_images = 100 * images / found.count
        labels = ", ".join(map(str, ids))
        table.add_row(what, labels, f"{share:.3f}", str(images), f"{of_images:.1f}")
    console.print(table)
    if found.mismatched:
        console.print(
            f"[yellow]{len(found.mismatched)} labels differ from their image in size[/], first: "
            f"{found.mismatched[0]}"
        )
    for error in found.errors[:5]:
        console.print(f"[red]{error}[/]", soft_wrap=True, highlight=False)
    if len(found.errors) > 5:
        console.print(f"[red]and {len(found.errors) - 5} more[/]")


if __name__ == "__main__":
    typer.run(main)
