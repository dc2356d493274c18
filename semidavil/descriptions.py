"""Data sets and benchmarks that a user describes, as `dataset.yaml` and `benchmark.yaml` say it.

    DataSet.model_validate({"name": "quay", "images": "frames/**/*.jpg", "labels": "masks/**/{stem}.png",
                            "splits": {"train": "rest", "val": "frames/seq7/**"},
                            "classes": {"water": 1, "quay": [2, 3]}, "ignored": [0]})

A description says what files mean and never where a folder lies: it is the same after a move. Its key is its
name with a hash of what it says (`quay@1f3a9c2b`): two versions of a description are two data sets.
"""

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from semidavil.benchmarks import BENCHMARKS, LABEL_IDS, Benchmark
from semidavil.label_values import Colour, category_of, rgb, values_of, written

# Of a split: the images that no other split has; of unlabelled: those without a label.
REST = "rest"
UNLABELLED = "unlabelled"  # the images that come without labels, beside the splits
LISTS = (".txt", ".csv", ".lst")  # endings of a split that is a list of files
MARK = "@"  # between a name and the hash of what was described
MOST_CLASSES = 250  # a class index is a byte, of which some values mean something else
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NO_RESULT = {"about", "licence"}  # what changes no result, of a data set


class DescriptionError(ValueError):
    """A description that is wrong; the message names the entry."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Category(_Entry):
    """What a class is called in labels, in words and in pictures.

    Attributes:
        values: its label ids, or its colours as 0xRRGGBB where labels are colours.
        synonyms: other words for it, which prompts use beside its name.
        colour: in pictures; None: that of its name in Cityscapes, or one that is made.
    """

    values: tuple[int, ...]
    synonyms: tuple[str, ...] = ()
    colour: Colour | None = None


class DataSet(_Entry):
    """The content of a `dataset.yaml`.

    Attributes:
        images, labels, disparity: patterns of paths below its folder. `*` is anything in one name, `**/` any
            folders, `{stem}` and other words in braces one name or a part of it, `{split}` what
            `splits` says;
            labels and disparities repeat what the image's path had. `.*` at the end is any ending.
        splits: by name: a folder's name that stands for `{split}`; or, without `{split}` in `images`,
        a list of
            files (`val.txt`), patterns of images, or "rest".
        unlabelled: pictures without labels, which a target's training learns from besides: "rest", those of
            train that have none; folders and patterns, whatever pictures lie there in no split.
        classes: in the order in which they are trained.
        ignored: ids or colours (0xRRGGBB) that exist and are no class.
        encoding: index: a grey or paletted file of ids; colour: a picture of colours; red: 16-bit RGB
        whose first
            channel is the id (SYNTHIA); panoptic: COCO's, with `segments`.
        divide: what ids in the files are divided by (1000 of Cityscapes' instance ids).
        segments: the pattern of COCO's JSON, from segments to categories.
        other_sizes: what becomes of images whose label has another size.
        scene: what captions begin with, "a street scene".
    """

    name: str
    images: str
    labels: str
    splits: dict[str, tuple[str, ...]]
    unlabelled: tuple[str, ...] = ()
    classes: dict[str, Category] = Field(min_length=1)
    ignored: tuple[int, ...] = ()
    encoding: Literal["index", "colour", "red", "panoptic"] = "index"
    divide: int = Field(1, ge=1)
    segments: str = ""
    disparity: str = ""
    other_sizes: Literal["refused", "left out"] = "refused"
    scene: str = "a street scene"
    about: str = ""
    licence: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_people_write_it(cls, tree: Any) -> Any:
        """Classes and ignored values in their long form."""
        if not isinstance(tree, dict):
            raise ValueError("expected entries such as `name: quay`")
        tree, colours = dict(tree), tree.get("encoding") == "colour"
        if isinstance(classes := tree.get("classes"), dict):
            tree["classes"] = {str(n): category_of(str(n), c, colours) for n, c in classes.items()}
        if isinstance(ignored := tree.get("ignored"), list | int | str):
            tree["ignored"] = values_of(ignored, colours, "ignored")
        if isinstance(said := tree.get(UNLABELLED), str):
            tree[UNLABELLED] = [said]
        if isinstance(splits := tree.get("splits"), list):
            tree["splits"] = {name: name for name in splits}
        if isinstance(splits := tree.get("splits"), dict):
            tree["splits"] = {
                name: [said] if isinstance(said, str) else said for name, said in splits.items()
            }
        return tree

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return _plain(name)

    @field_validator("images", "labels", "disparity", "segments")
    @classmethod
    def _is_below(cls, pattern: str) -> str:
        return _below(pattern)

    @field_validator("unlabelled")
    @classmethod
    def _are_folders(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [p for p in patterns if p.lower().endswith(LISTS) or "{" in p]:
            raise ValueError(
                f"{wrong[0]!r}: write rest, a folder, or a pattern such as more/**/*.jpg"
            )
        return tuple(map(_below, patterns))

    @field_serializer("ignored")
    def _ignored_as_read(self, values: tuple[int, ...]) -> list[int | str]:
        """Colours as text: three numbers would be one colour."""
        return [f"#{v:06x}" for v in values] if self.encoding == "colour" else list(values)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.splits:
            raise ValueError("splits: name at least train")
        if "*" not in self.images and "{" not in self.images:
            raise ValueError(
                f"images: {self.images!r} is one file: write a pattern such as frames/**/*.jpg"
            )
        if self.unlabelled and UNLABELLED in self.splits:
            raise ValueError("unlabelled is an entry, and no split beside it: leave one out")
        rests = [name for name, said in self.splits.items() if said == (REST,)]
        if "{split}" in self.images:
            many = [name for name, said in self.splits.items() if len(said) != 1 or said == (REST,)]
            if many:
                raise ValueError(
                    f"splits: {many[0]} must be one name, which stands for {{split}} in {self.images}"
                )
        elif len(rests) > 1:
            raise ValueError(f"splits: {' and '.join(rests)} cannot both be the rest")
        known = _words(self.images) | {"split"}
        for entry in ("labels", "disparity", "segments"):
            if unknown := _words(getattr(self, entry)) - known:
                raise ValueError(
                    f"{entry}: {{{min(unknown)}}} is nothing that images ({self.images}) says"
                )
        if "*" not in self.labels and "{" not in self.labels:
            raise ValueError(f"labels: {self.labels!r} is the same file for all images")
        if (self.encoding == "panoptic") != bool(self.segments):
            raise ValueError("segments: the pattern of COCO's JSON, of the encoding panoptic alone")
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(f"classes: {len(self.classes)} are more than {MOST_CLASSES}")
        seen: dict[int, str] = {}
        for name, category in self.classes.items():
            if not category.values:
                raise ValueError(
                    f"classes: {name} has no {'colour' if self.encoding == 'colour' else 'id'}, so that no "
                    "label can hold it"
                )
            for value in category.values:
                if value in seen:
                    raise ValueError(
                        f"classes: {self.shown(value)} is both {seen[value]} and {name}"
                    )
                seen[value] = name
        for value in self.ignored:
            if value in seen:
                raise ValueError(f"ignored: {self.shown(value)} is the class {seen[value]}")
        if len(seen) + len(self.ignored) > 256:
            raise ValueError("classes: more than 256 ids or colours")
        return self

    def shown(self, value: int) -> str:
        """A value of the labels as a file has it: an id, or a colour."""
        if self.encoding != "colour":
            return f"the id {value}"
        return f"the colour {written(value)}"

    @property
    def codes(self) -> dict[int, int]:
        """What a reader gives for each value of the files: ids below 256 as they are, else their number."""
        values = [value for c in self.classes.values() for value in c.values]
        values += [value for value in self.ignored if value not in values]
        if self.encoding != "colour" and max(values) < 256:
            return {value: value for value in values}
        # Sorted: `key` has no order of classes, and decoded labels are kept by it.
        return {value: code for code, value in enumerate(sorted(values))}

    @property
    def label_ids(self) -> dict[int, str | None]:
        """Class by what a reader gives, None where it is ignored: as `benchmarks.LABEL_IDS` has it."""
        codes = self.codes
        found: dict[int, str | None] = dict.fromkeys(codes[value] for value in self.ignored)
        return found | {codes[v]: name for name, c in self.classes.items() for v in c.values}

    @property
    def colours(self) -> dict[str, Colour]:
        """Of classes in pictures, as far as the description says; where labels are colours, those."""
        by_label = {name: rgb(c.values[0]) for name, c in self.classes.items()}
        said = {name: c.colour for name, c in self.classes.items() if c.colour}
        return (by_label if self.encoding == "colour" else {}) | said

    @property
    def key(self) -> str:
        """Its name, with a hash of all that changes what a reader gives."""
        content = self.model_dump(mode="json", exclude=NO_RESULT)
        for category in content["classes"].values():
            del category["colour"]
        if not self.unlabelled:  # which descriptions had no entry for
            del content[UNLABELLED]
        return f"{self.name}{MARK}{_hash(content)}"


class BenchmarkFile(_Entry):
    """The content of a `benchmark.yaml`, with the data sets that it names.

    Attributes:
        source, target: a description, or a built-in data set's name; no source: no domain shift.
        classes: what is trained and scored; empty: those of the target.
        renamed: names of the source's (or target's) classes that are called otherwise in `classes`.
        budgets: numbers of labelled target images that grids compare.
        scene: what captions begin with; empty: as the target says.
    """

    name: str
    source: DataSet | str | None = None
    target: DataSet | str
    classes: tuple[str, ...] = ()
    renamed: dict[str, str] = Field(default_factory=dict, alias="map")
    budgets: tuple[int, ...] = ()
    scene: str = ""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return _plain(name)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        classes, datasets = self.trained, self.datasets
        needed = {"source": ("train",), "target": ("train", "val")}
        for role, splits in needed.items():
            one = getattr(self, role)
            if isinstance(one, str) and one not in LABEL_IDS:
                known = ", ".join(name for name in LABEL_IDS if MARK not in name)
                raise ValueError(
                    f"{role}: there is no data set {one!r}: {known}, or a dataset.yaml"
                )
            missing = [s for s in splits if isinstance(one, DataSet) and s not in one.splits]
            if missing:
                raise ValueError(f"{role}: {one.name} has no split {missing[0]}, which is needed")
        keys = [one.key if isinstance(one, DataSet) else one for one in datasets.values()]
        if len(set(keys)) < len(keys):
            raise ValueError("source and target are one data set: leave the source out")
        if len(set(classes)) != len(classes):
            raise ValueError("classes: one is named twice")
        names = {role: self._names_of(one) for role, one in datasets.items()}
        everywhere = set().union(*names.values())
        if wrong := [old for old in self.renamed if old not in everywhere]:
            raise ValueError(f"map: no data set has a class {wrong[0]!r}")
        if wrong := [new for new in self.renamed.values() if new not in classes]:
            raise ValueError(f"map: {wrong[0]!r} is none of the classes {', '.join(classes)}")
        for role, own in names.items():
            called = {self.renamed.get(name, name) for name in own}
            lacking = [name for name in classes if name not in called]
            if role == "target" and lacking:
                raise ValueError(
                    f"classes: the target has no class {lacking[0]!r}, so that it could not be scored. It "
                    f"has {', '.join(sorted(own))}; map says what is called otherwise"
                )
            if len(lacking) == len(classes):
                raise ValueError(
                    f"map: no class of the {role} is one of {', '.join(classes)}. It has "
                    f"{', '.join(sorted(own))}: say which is which, as in `map: {{car: vehicle}}`"
                )
        return self

    @staticmethod
    def _names_of(one: DataSet | str) -> set[str]:
        known = one.classes if isinstance(one, DataSet) else LABEL_IDS[one].values()
        return {name for name in known if name}

    @property
    def datasets(self) -> dict[str, DataSet | str]:
        """By role, the source first."""
        both = {"source": self.source, "target": self.target}
        return {role: one for role, one in both.items() if one is not None}

    @property
    def trained(self) -> tuple[str, ...]:
        """The classes, in order."""
        if self.classes:
            return self.classes
        if isinstance(self.target, DataSet):
            return tuple(dict.fromkeys(self.renamed.get(n, n) for n in self.target.classes))
        return next(b.classes for b in BENCHMARKS.values() if b.target == self.target)

    @property
    def key(self) -> str:
        """Its name, with a hash of all that changes a run's result."""
        parts = {r: d.key if isinstance(d, DataSet) else d for r, d in self.datasets.items()}
        content = [parts, self.trained, sorted(self.renamed.items()), self.scene]
        return f"{self.name}{MARK}{_hash(content)}"

    @property
    def benchmark(self) -> Benchmark:
        keys = {r: d.key if isinstance(d, DataSet) else d for r, d in self.datasets.items()}
        described = [d for d in self.datasets.values() if isinstance(d, DataSet)]
        colours: dict[str, Colour] = {}
        words: dict[str, tuple[str, ...]] = {}
        for one in described:  # the target last: it has the last word
            for name, category in one.classes.items():
                name = self.renamed.get(name, name)
                words[name] = tuple(dict.fromkeys([*words.get(name, ()), *category.synonyms]))
            colours |= {self.renamed.get(name, name): c for name, c in one.colours.items()}
        scene = self.scene or (self.target.scene if isinstance(self.target, DataSet) else "")
        return Benchmark(
            self.key,
            keys.get("source"),
            keys["target"],
            self.trained,
            self.budgets,
            synonyms=self.renamed,
            colours=colours,
            words={name: said for name, said in words.items() if said and name in self.trained},
            scene=scene or Benchmark.scene,
            disparity=bool(described)
            and described[-1] is self.target
            and bool(described[-1].disparity),
        )


def explained(error: ValidationError) -> str:
    """What is wrong, an entry after another, in words."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part not in ("DataSet", "str"))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such entry"
        elif item["type"] == "missing":
            message = "is missing"
        lines.append(f"{where}: {message}" if where else message)
    return "; ".join(dict.fromkeys(lines))


def _words(pattern: str) -> set[str]:
    return set(re.findall(r"{(\w+)}", pattern)) - {"stem"}


def _below(pattern: str) -> str:
    if pattern.startswith(("/", "~")) or ".." in pattern.split("/") or "\\" in pattern:
        raise ValueError(
            f"{pattern!r} leads out of the data set's folder: write a path below the folder of the "
            "file, with /; link to what lies elsewhere"
        )
    return pattern


def _plain(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name: letters, digits, dots, dashes and underscores, as in "
            f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-._') or 'my-quay'}"
        )
    return name


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
