"""Checks data sets and prints what is in them.

python -m semidavil data --data-root DIR [--benchmark NAME]
python -m semidavil data --toy
python -m semidavil data --toy --captions positions      # and tries a captioner
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, LABEL_IDS, SYNAPSE_13, Benchmark
from semidavil.config import Config, parse_settings, preset, refuse_oracle
from semidavil.data.checks import require_classes
from semidavil.data.files import DataError
from semidavil.data.readers import READERS
from semidavil.data.scans import Scan, describe
from semidavil.data.synapse import SHARES, Synapse
from semidavil.settings import Data
from semidavil.toy.write import ensure_toy_data

console = Console()
SYNAPSE = "synapse"
SAMPLE = 100  # images that are captioned to try a captioner


def data_command(
    data_root: Annotated[
        Path | None,
        typer.Option(envvar="SEMIDAVIL_DATA_ROOT", help="Folder that holds a folder per data set."),
    ] = None,
    toy: Annotated[bool, typer.Option("--toy", help="The generated toy data.")] = False,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join((*READERS, SYNAPSE))}. [default: all there]"),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help=f"Its data sets, by its classes. Of {', '.join(BENCHMARKS)}."),
    ] = None,
    cache_dir: Annotated[Path, typer.Option(help="Where outcomes are kept.")] = Path("data"),
    captions: Annotated[
        str,
        typer.Option(
            metavar="CAPTIONER",
            help=f"Captions {SAMPLE} images of a benchmark with it (as model.captions) and shows some.",
        ),
    ] = "",
    preset_name: Annotated[
        str | None,
        typer.Option("--preset", help="Of --captions. [default: toy, small with --data-root]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Of --captions, e.g. model.caption_prompt=..."
        ),
    ] = None,
) -> None:
    """Reads every image and label once: counts, sizes, class frequencies, and what is wrong."""
    try:
        if benchmark is not None and benchmark not in BENCHMARKS:
            choices = ", ".join(BENCHMARKS)
            raise DataError(f"unknown benchmark {benchmark!r}: choose from {choices}")
        chosen = BENCHMARKS[benchmark] if benchmark else None
        root = ensure_toy_data(cache_dir / "toy") if toy else data_root
        if root is None:
            raise DataError("pass --data-root with a folder that holds one per data set, or --toy")
        known = (*READERS, SYNAPSE)
        unknown = [name for name in dataset or () if name not in known]
        if unknown:
            raise DataError(f"unknown data set {unknown[0]!r}: choose from {', '.join(known)}")
        wanted = dataset or (list(chosen.datasets) if chosen else [])
        names = wanted or [name for name in known if (root / name).is_dir()]
        if not names:
            raise DataError(f"no data set in {root}: expected folders named {', '.join(known)}")
        broken = False
        for name in names:
            if name == SYNAPSE:
                _print_scans(Synapse(root / name))
                continue
            for split, found in describe(name, (root / name).absolute(), cache_dir).items():
                _print(name, split, found, chosen)
                broken |= bool(found.errors)
                if chosen and split == "val" and name in chosen.datasets and not found.errors:
                    require_classes(chosen, name, split, found)
                broken |= bool(found.mismatched) and not READERS[name].drop_size_mismatch
        if captions:
            changes = {
                "data.benchmark": benchmark or Data().benchmark,
                "data.toy": toy,
                "runtime.data_root": "" if toy else str(root),
                "runtime.cache_dir": str(cache_dir),
                **parse_settings(settings or []),
                "model.captions": captions,
            }
            _print_captions(preset(preset_name or ("toy" if toy else "small"), changes))
    except ValueError as error:
        console.print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    if broken:
        raise typer.Exit(1)


def _print_captions(config: Config) -> None:
    """Captions some images of each stream; what is made is kept, and no run makes it again."""
    from semidavil.device import choose_device
    from semidavil.experiments.street import try_captions  # torch: seconds to import

    refuse_oracle(config)
    said = try_captions(config, choose_device(config.runtime.device), SAMPLE)
    console.print(said, soft_wrap=True, highlight=False, markup=False)


def _print(name: str, split: str, found: Scan, benchmark: Benchmark | None) -> None:
    sizes = sorted(found.sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:4])
    more = f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""
    console.print(f"[bold]{name}, {split}[/]: {found.count} images; height x width {shown}{more}")
    # A row per id: images that hold one of several ids cannot be counted from the counts of each.
    table = Table("label id", "class")
    for column in ("% of pixels", "images", "% of images"):
        table.add_column(column, justify="right")
    total = sum(found.pixels.values()) or 1
    for raw in sorted(found.pixels):
        share, images = 100 * found.pixels[raw] / total, found.images[raw]
        of_images = f"{100 * images / found.count:.1f}"
        what = _class(name, raw, benchmark)
        table.add_row(str(raw), what, f"{share:.3f}", str(images), of_images)
    console.print(table)
    if found.mismatched:
        fate = "left out of training" if READERS[name].drop_size_mismatch else "an error"
        console.print(
            f"[yellow]{len(found.mismatched)} labels differ from their image in size[/] ({fate}), "
            f"first: {found.mismatched[0]}",
            soft_wrap=True,
        )
    for error in found.errors[:5]:
        console.print(f"[red]{error}[/]", soft_wrap=True, highlight=False)
    if len(found.errors) > 5:
        console.print(f"[red]and {len(found.errors) - 5} more[/]")


def _print_scans(reader: Synapse) -> None:
    """Reads every scan; a DataError says what is wrong."""
    counts = reader.voxels(tuple(SHARES))
    for split, voxels in counts.items():
        console.print(f"[bold]{SYNAPSE}, {split}[/]: {len(reader.cases(split))} scans")
        table = Table("label", "organ")
        table.add_column("% of voxels", justify="right")
        for label, name in enumerate(("(background)", *SYNAPSE_13)):
            table.add_row(str(label), name, f"{100 * voxels[label] / max(1, voxels.sum()):.3f}")
        console.print(table)


def _class(dataset: str, raw: int, benchmark: Benchmark | None) -> str:
    """What a label id means: to the data set, or to the benchmark where one is chosen."""
    if raw not in LABEL_IDS[dataset]:
        return "unknown"
    if benchmark is None or dataset not in benchmark.datasets:
        return LABEL_IDS[dataset][raw] or "(ignored)"
    index = int(benchmark.lookup(dataset)[raw])
    return "(ignored)" if index == IGNORE_INDEX else benchmark.classes[index]
