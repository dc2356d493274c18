"""Checks data sets and prints what is in them.

python -m semidavil data --data-root DIR [--benchmark NAME]
python -m semidavil data --toy
python -m semidavil data --toy --captions positions      # and tries a captioner
python -m semidavil data --init quay                     # writes a first quay/dataset.yaml
python -m semidavil data --benchmark quay/dataset.yaml   # checks it, and writes a page to look at
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, LABEL_IDS, SYNAPSE_13, Benchmark
from semidavil.commands.endings import PLUGIN, told
from semidavil.config import Config, parse_settings, preset, refuse_oracle
from semidavil.data.archives import copy_archive
from semidavil.data.checks import (
    needs_labels,
    remedy,
    strange_words,
    unknown_values,
    void_labels,
)
from semidavil.data.described import reader_of, title_of
from semidavil.data.files import DataError
from semidavil.data.fingerprint import memo_of
from semidavil.data.layout import folder_of
from semidavil.data.own import is_own, own_benchmark
from semidavil.data.readers import READERS, Reader
from semidavil.data.scans import Scan, describe
from semidavil.data.suspicions import suspicions
from semidavil.data.synapse import SHARES, Synapse
from semidavil.descriptions import UNLABELLED
from semidavil.evaluation.data_page import PICTURES, DataPage
from semidavil.registry import has_unlabelled, is_without_labels, written_value
from semidavil.settings import Data, Runtime
from semidavil.toy.write import ensure_toy_data

console = Console()
SYNAPSE = "synapse"
FEW_PICTURES = 2  # of those without labels, on a page
SHOWN = 5  # problems of a split
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
        typer.Option(
            help=f"Its data sets, by its classes. Of {', '.join(BENCHMARKS)}, or a benchmark.yaml or "
            "dataset.yaml, or one of a --plugin."
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Looks at a folder and writes a first dataset.yaml into it."
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="KIND:PLACE",
            help="Of --init: copies what is no folder of pictures into the folder first: a data set of "
            "Hugging Face (hf:NAME, or hf:FOLDER), or what a --plugin reads.",
        ),
    ] = "",
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Of --benchmark: the page about its data. [default: pages/ below --cache-dir]",
        ),
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
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE", help=PLUGIN)] = None,
) -> None:
    """Reads every image and label once: counts, sizes, class frequencies, what is wrong and what is odd."""
    broken = False
    with told(console, "stopped; the same command goes on with what is left", plugin or ()):
        if source and not init:
            raise DataError("--from copies into a folder: name it with --init FOLDER")
        if init:
            _init(init, source)
            return
        place, root, settings_of_place = _places(benchmark, toy, data_root, cache_dir)
        chosen = BENCHMARKS[place] if place else None
        if page and chosen is None:
            raise DataError("--page is about a benchmark: name it with --benchmark")
        names = _datasets(dataset, chosen, root)
        about = DataPage(chosen) if chosen and chosen.kind == "images" else None
        runtime = Runtime(
            data_root=str(root or ""), folders=settings_of_place.get("runtime.folders", "")
        )
        for name in names:
            if name == SYNAPSE:
                _print_scans(Synapse(folder_of(runtime, name)))
                continue
            reader = reader_of(name, folder_of(runtime, name))
            scans = describe(reader, cache_dir)
            for split, found in scans.items():
                _print(reader, split, found, chosen)
            problems = _problems(reader, scans, chosen)
            for text in problems:
                console.print(f"[red]wrong:[/] {escape(text)}", soft_wrap=True, highlight=False)
            broken |= bool(problems)
            if about and name in about.benchmark.datasets:
                about.problems += problems
                _add_to_page(about, reader, scans, memo_of(cache_dir))
        if about:
            if is_own(benchmark or "") and (words := strange_words(about.benchmark)):
                about.suspicions.append(f"{about.title}: {words}")
            for text in about.suspicions:
                console.print(
                    f"[yellow]suspicious:[/] {escape(text)}", soft_wrap=True, highlight=False
                )
            file = page or cache_dir / "pages" / f"{about.title}.html"
            about.write(file)
            console.print(f"page: {file}", soft_wrap=True, highlight=False)
        if captions:
            changes = {
                "data.benchmark": place or Data().benchmark,
                "data.toy": toy,
                "runtime.data_root": "" if toy else str(root or ""),
                "runtime.cache_dir": str(cache_dir),
                **settings_of_place,
                **parse_settings(settings or []),
                "model.captions": captions,
            }
            _print_captions(preset(preset_name or ("toy" if toy else "small"), changes))
    if broken:
        raise typer.Exit(1)


def _init(folder: Path, source: str) -> None:
    from semidavil.data.first_look import SHEET, write_first_description

    if source:
        copy_archive(source, folder)
    first = write_first_description(folder)
    for line in first.said:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"written: {first.path}\nlook at {folder / SHEET}, give the classes their names in "
        f"{first.path.name}, "
        f"then: python -m semidavil data --benchmark {first.path}",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip


def _places(
    benchmark: str | None, toy: bool, data_root: Path | None, cache_dir: Path
) -> tuple[str, Path | None, dict[str, str]]:
    """The benchmark's name, the folder of data sets, and the settings of a described benchmark."""
    if benchmark and is_own(benchmark):
        if toy:
            raise DataError(
                f"--toy is generated data, and {benchmark} has images of its own: leave one out"
            )
        settings = own_benchmark(benchmark, str(data_root or ""))
        return settings["data.benchmark"], data_root, settings
    if benchmark is not None and benchmark not in BENCHMARKS:
        if Path(benchmark).is_dir():
            raise DataError(
                f"{benchmark} has no dataset.yaml: python -m semidavil data --init {shlex.quote(benchmark)} "
                "writes a first one"
            )
        choices = ", ".join(BENCHMARKS)
        raise DataError(
            f"unknown benchmark {benchmark!r}: choose from {choices}, or name a benchmark.yaml or "
            "dataset.yaml"
        )
    root = ensure_toy_data(cache_dir / "toy") if toy else data_root
    if root is None:
        raise DataError(
            "pass --data-root with a folder that holds one per data set, --toy, or --benchmark with a "
            "dataset.yaml"
        )
    return benchmark or "", root.absolute(), {}


def _datasets(dataset: list[str] | None, chosen: Benchmark | None, root: Path | None) -> list[str]:
    known = (*READERS, SYNAPSE, *(chosen.datasets if chosen else ()))
    unknown = [name for name in dataset or () if name not in known]
    if unknown:
        raise DataError(f"unknown data set {unknown[0]!r}: choose from {', '.join(known)}")
    wanted = dataset or (list(chosen.datasets) if chosen else [])
    names = wanted or [name for name in known if root and (root / name).is_dir()]
    if not names:
        raise DataError(f"no data set in {root}: expected folders named {', '.join(known)}")
    return names


def _problems(reader: Reader, scans: dict[str, Scan], benchmark: Benchmark | None) -> list[str]:
    """What is wrong with a data set, in sentences, with what to do."""
    problems, void = list[str](), list[str]()
    for split, found in scans.items():
        where = f"{title_of(reader.name)}, {split}"
        if benchmark and needs_labels(benchmark, reader.name, split) and not found.errors:
            why = void_labels(benchmark, reader, split, found)
            void += [f"{where}: {why}"] if why else []
        errors = [text] if (text := unknown_values(reader.name, found)) else found.errors
        problems += [f"{where}: {error}" for error in errors[:SHOWN]]
        if len(errors) > SHOWN:
            problems.append(f"{where}: and {len(errors) - SHOWN} more")
        if found.mismatched and not reader.drop_size_mismatch:
            first = found.mismatched[0]
            problems.append(
                f"{where}: {len(found.mismatched)} labels have another size than their image, the "
                f"first is that of {first}"
            )
    if problems:
        problems[-1] += f". {remedy(reader.name)}"
    return problems + void


def _add_to_page(about: DataPage, reader: Reader, scans: dict[str, Scan], memo: Path) -> None:
    """What is odd about a data set, and some of its pictures."""
    about.suspicions += suspicions(about.benchmark, reader, scans, memo)
    about.add(reader, scans)
    shown = [split for split in ("train", "val") if split in scans]
    most = PICTURES // (len(shown) * len(about.benchmark.datasets))
    for split in shown:
        about.add_pictures(reader, split, reader.samples(split), most)
    if UNLABELLED in scans and has_unlabelled(reader.name):
        about.add_pictures(reader, UNLABELLED, reader.samples(UNLABELLED), FEW_PICTURES)


def _print_captions(config: Config) -> None:
    """Captions some images of each stream; what is made is kept, and no run makes it again."""
    from semidavil.device import choose_device
    from semidavil.experiments.street import try_captions  # torch: seconds to import

    refuse_oracle(config)
    said = try_captions(config, choose_device(config.runtime.device), SAMPLE)
    console.print(said, soft_wrap=True, highlight=False, markup=False)


def _print(reader: Reader, split: str, found: Scan, benchmark: Benchmark | None) -> None:
    name, title = reader.name, title_of(reader.name)
    sizes = sorted(found.sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:4])
    more = f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""
    sized = f"; height x width {shown}{more}" if shown else ""
    if is_without_labels(name, split):
        console.print(f"[bold]{title}[/]: {found.count} images without labels{sized}")
        return
    console.print(f"[bold]{title}, {split}[/]: {found.count} images{sized}")
    # A row per id: images that hold one of several ids cannot be counted from the counts of each.
    table = Table("label id", "class")
    for column in ("% of pixels", "images", "% of images"):
        table.add_column(column, justify="right")
    total = sum(found.pixels.values()) or 1
    for raw in sorted(found.pixels):
        share, images = 100 * found.pixels[raw] / total, found.images[raw]
        of_images = f"{100 * images / found.count:.1f}"
        what = _class(name, raw, benchmark)
        table.add_row(written_value(name, raw), what, f"{share:.3f}", str(images), of_images)
    console.print(table)
    if found.mismatched and reader.drop_size_mismatch:
        console.print(
            f"[yellow]{len(found.mismatched)} labels differ from their image in size[/] (left out of "
            f"training), first: {found.mismatched[0]}",
            soft_wrap=True,
        )


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
