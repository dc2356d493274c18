"""What a run trains on and is scored on, as a text that tells whether two runs saw the same.

    fingerprint(config)
    # cityscapes/train/images=03b1c7... cityscapes/train/labels=9d20... ... weights=77a0...

One part for the images, and one for the labels, of each split of a data set; one each for disparities, CT
scans, the weights of the vision-language model and the models that make captions or depth, as far as they are
files. A part is a hash of what its files hold: the same wherever the folder lies and whenever it was
copied, and another one after a label was repaired. Generated data are known by their generator's version.

Needs no torch: a sweep compares what its finished runs have seen with what is there now.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from operator import attrgetter
from pathlib import Path

from semidavil.benchmarks import BENCHMARKS, Benchmark
from semidavil.config import Config
from semidavil.data.checks import looks_at_labels, splits_of
from semidavil.data.depth import disparity_path, needs_depth
from semidavil.data.described import title_of
from semidavil.data.files import hash_files
from semidavil.data.folders import files_below
from semidavil.data.hub import local_model, model_files
from semidavil.data.layout import cache_dir, folder_of, open_reader
from semidavil.data.readers import Reader, Sample
from semidavil.descriptions import UNLABELLED
from semidavil.names import METHODS, SHUFFLED, VISION_ONLY
from semidavil.registry import training_splits
from semidavil.settings import Model
from semidavil.toy import abdomen, clip, write

# Hashes of files by path; see `files.hash_files` and `files.recall_hashes`.
Hashes = Callable[[Sequence[Path], Path], Mapping[Path, str]]
SCANS = (".h5", ".nii", ".gz", ".txt")  # endings of CT scans, and of the lists beside them


@dataclass(frozen=True)
class Part:
    """Files whose contents, and whose names below `root`, count."""

    name: str
    root: Path | None  # None: their contents alone count
    files: Callable[[], Sequence[Path]] = field(compare=False)
    about: str = ""  # tells apart what has one name and no root

    def digest(self, files: Sequence[Path], hashes: Mapping[Path, str]) -> str:
        """16 hex digits of its files, whose `hashes` are known."""
        if self.root is None:
            lines = sorted(hashes[path] for path in files)
        else:
            # os.path: pathlib's relative paths cost a second per ten thousand files.
            start = len(os.path.join(self.root, ""))
            lines = [f"{os.fspath(path)[start:]}\0{hashes[path]}" for path in files]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def fingerprint(
    config: Config, hashes: Hashes = hash_files, known: dict[Part, str] | None = None
) -> str:
    """`name=value` for each part, in order, with blanks between.

    Args:
        known: digests of parts that many Configs have in common; what is found is added.

    Raises:
        DataError: something is not here.
    """
    known = {} if known is None else known
    values, found = generated(config), parts(config)
    if files := {part: part.files() for part in found if part not in known}:
        # All at once, so that the memo is read once.
        contents = hashes(list(chain(*files.values())), memo_of(cache_dir(config)))
        known |= {part: part.digest(paths, contents) for part, paths in files.items()}
    values |= {part.name: known[part] for part in found}
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


def memo_of(cache: Path) -> Path:
    """Where hashes of files are remembered: the file that captions use too, so that images are read once."""
    return cache / "captions" / "hashes.jsonl"


def differences(before: str, now: str) -> list[str]:
    """The names of the parts in which two fingerprints differ: `harbour/train/images`."""
    pairs = {tuple(word.partition("=")[::2]) for word in before.split()} ^ {
        tuple(word.partition("=")[::2]) for word in now.split()
    }
    names = {name.partition("/") for name, _ in pairs}
    return sorted({f"{title_of(dataset)}{slash}{rest}" for dataset, slash, rest in names})


def generated(config: Config) -> dict[str, str]:
    """The parts that a generator makes, by its version."""
    if not config.data.toy:
        return {}
    if BENCHMARKS[config.data.benchmark].kind == "volumes":
        size = "x".join(map(str, abdomen.SIZE))
        return {"generated": f"abdomen-v{abdomen.VERSION}-{size}"}
    return {"generated": f"scenes-v{write.VERSION}-{'x'.join(map(str, write.SIZE))}"}


def parts(config: Config) -> list[Part]:
    """The parts that are files.

    Raises:
        DataError: a data set, or a model, that is not here.
    """
    benchmark, found = BENCHMARKS[config.data.benchmark], list[Part]()
    if not config.data.toy:
        if benchmark.kind == "volumes":
            scans = folder_of(config.runtime, benchmark.target)
            return [Part(f"{benchmark.target}/scans", scans, lambda: _scans(scans))]
        found += _images(config, benchmark)
    if benchmark.kind == "volumes":
        return found
    found += _weights(config.model) + _encoder(config.model)
    captioner = _model_of(config.model.captions.removeprefix(SHUFFLED))
    if captioner and config.model.fusion not in VISION_ONLY:
        found.append(_model("captioner", captioner))
    if needs_depth(config) and (estimator := _model_of(config.data.depth)):
        found.append(_model("depth", estimator))
    return found


def _scans(root: Path) -> list[Path]:
    return sorted(path for path in files_below(root) if path.suffix.lower() in SCANS)


def _images(config: Config, benchmark: Benchmark) -> list[Part]:
    found = []
    for dataset, split in splits_of(benchmark):
        if split == UNLABELLED and UNLABELLED not in METHODS[config.training.method].streams:
            continue
        reader = open_reader(config, dataset)
        samples = cache(partial(reader.samples, split))
        for kind, attribute in (("images", "image"), ("labels", "label")):
            if kind == "images" or looks_at_labels(config, dataset, split):
                files = partial(_listed, samples, attrgetter(attribute))
                found.append(Part(f"{dataset}/{split}/{kind}", reader.root, files))
        if reader.state and looks_at_labels(config, dataset, split):
            found.append(Part(f"{dataset}/{split}/segments", reader.root, reader.segment_files))
    if needs_depth(config) and not _model_of(config.data.depth):
        target = open_reader(config, benchmark.target)
        files = partial(_listed, partial(_target_samples, target), disparity_path)
        found.append(Part(f"{benchmark.target}/train/disparity", target.root, files))
    return found


def _target_samples(reader: Reader) -> list[Sample]:
    """All images of a target that come with disparities."""
    return [sample for split in training_splits(reader.name) for sample in reader.samples(split)]


def _model_of(name: str) -> str:
    """The model in `hf:NAME`, `blip2:NAME` and the like; empty where there is none."""
    return name.partition(":")[2]


def _listed(samples: Callable[[], list[Sample]], file_of: Callable[[Sample], Path]) -> list[Path]:
    return [file_of(sample) for sample in samples()]


def _weights(model: Model) -> list[Part]:
    """The CLIP, as far as it is in files of the user's or of this package: a tag names its weights itself."""
    folder = Path(clip.__file__).parent if model.vlm == "toy" else Path(model.vlm).expanduser()
    folder = Path(str(folder).removeprefix("local-dir:"))
    files = model_files(folder) if folder.is_dir() else []
    file = Path(model.weights).expanduser()
    if model.weights != "bundled":
        files = [path for path in files if path.suffix == ".json"]
        files += [file, *model_files(file.parent, (".json",))] if file.is_file() else []
    return [Part("weights", None, lambda: files, str(files))] if files else []


def _encoder(model: Model) -> list[Part]:
    """The weights of an encoder beside the CLIP, where they are a file of the user's, or its folder."""
    place = Path(model.encoder_weights).expanduser()
    if not model.encoder or not (place.is_file() or place.is_dir()):
        return []
    files = model_files(place) if place.is_dir() else [place]
    if place.is_file():
        files += [
            path for path in model_files(place.parent, (".json",)) if path.name == "config.json"
        ]
    return [Part("encoder", None, lambda: files, str(files))]


def _model(part: str, name: str) -> Part:
    """A model of Hugging Face; it is looked for when its files are."""
    return Part(part, None, lambda: model_files(local_model(name)), name)
