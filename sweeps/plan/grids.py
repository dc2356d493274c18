"""Every grid, declared as data: which Configs answer which question.

A grid is a function (base, selection) -> Configs whose docstring says the question it answers, the
figure or table it feeds and what it costs. Its entry in `GRIDS` adds what the
harness needs to know about it: its baseline, and the settings that it varies. Attentions, losses, methods and
captioners of plugins stand beside ours; those costs do not count them.

    cells = GRIDS["attention"].cells(preset("toy"), seeds=[0, 1, 2])
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.names import (
    CAPTIONERS,
    FUSIONS,
    LOSSES,
    METHODS,
    ORACLE,
    SHUFFLED,
    VISION_ONLY,
    captions_name,
)
from semidavil.plugins import Table, provider
from sweeps.plan import encoders as compared
from sweeps.plan.combine import Selection, budgets_of, everywhere, product
from sweeps.plan.grid import Grid
from sweeps.plan.own_grids import own_grid

# Settings that have an option of their own: every grid varies them, and --set does not.
SHARED_AXES = {"data.benchmark": "--benchmark", "data.budget": "--budgets", "seed": "--seeds"}


def attentions() -> list[str]:
    """All that read a caption."""
    return [name for name in FUSIONS if name not in VISION_ONLY]


def losses_to_compare() -> list[str]:
    """All, DyCE first."""
    return ["dyce", *(name for name in LOSSES if name != "dyce")]


def of_plugins(table: str, names: Iterable[str]) -> list[str]:
    """Those of the names in a table that plugins have brought."""
    return [name for name in names if provider(table, name)]


def attention(base: Config, which: Selection) -> list[Config]:
    """Question: does dense language guidance (DLG) beat other ways of joining image and caption?

    Feeds: the attention figure, mIoU against label budget per attention.
    Cost: 4 attentions x 6 budgets = 24 runs per benchmark and seed.
    """
    return everywhere(base, which, [{"model.fusion": name} for name in attentions()])


def attention_controls(base: Config, which: Selection) -> list[Config]:
    """Question: what is an attention worth beyond the layer that reads it?

    Every attention beside two controls: `none` adds nothing to the image's features, `blank` adds the
    layer that reads every attention, with nothing to read.
    Feeds: the table of attention controls, with parameters and milliseconds.
    Cost: 4 attentions and 2 controls = 6 runs at 100 labels per benchmark and seed; 4 are those of
    `attention`.
    """
    variants = [
        {"model.fusion": name}
        for name in (*attentions(), "blank", "none", *of_plugins("VISION_ONLY", VISION_ONLY))
    ]
    return everywhere(base, which, variants, usual=(100,))


def losses(base: Config, which: Selection) -> list[Config]:
    """Question: does DyCE beat other losses for imbalanced classes, and on which classes?

    Feeds: the loss table, and the figure of the gain of DyCE over CE per class.
    Cost: 6 losses x 6 budgets = 36 runs per benchmark and seed.
    """
    variants = [{"loss.name": name} for name in losses_to_compare()]
    return everywhere(base, which, variants)


# How a loss is compared with others. With one lambda, a loss of a larger gradient also weakens the
# consistency term beside it: DyCE's is 5 to 21 times cross-entropy's.
WAYS: dict[str, dict[str, Any]] = {
    "paper": {},
    "matched": {"training.consistency_scale": "matched"},
    "alone": {"training.consistency_weight": 0.0},
}


def loss_controls(base: Config, which: Selection) -> list[Config]:
    """Question: is it the loss, or what it does to the weight of the consistency term?

    Every loss three ways: as in the paper, with one lambda; matched, with lambda scaled so that the
    supervised and the consistency gradient have the ratio that they have under cross-entropy; and
    alone, without consistency.
    Feeds: the table of loss controls.
    Cost: 6 losses x 3 ways = 18 runs at 100 labels per benchmark and seed; 6 are those of `losses`.
    """
    names = losses_to_compare()
    variants = [{"loss.name": name, **way} for name in names for way in WAYS.values()]
    return everywhere(base, which, variants, usual=(100,))


def way_of(params: Mapping[str, str]) -> str:
    """The name in `WAYS` of how a cell's loss is compared, from flat params."""
    if params["training.consistency_scale"] == "matched":
        return "matched"
    return "alone" if float(params["training.consistency_weight"]) == 0 else "paper"


def _loss_and_way(params: Mapping[str, str]) -> str:
    return f"{params['loss.name']}-{way_of(params)}"


# What the rival methods are made of, on the same encoder, decoder, data and schedule. Their papers
# train with cross-entropy; both UniMatch and S-Depth know no language, SemiVL knows class definitions.
RIVALS: dict[str, dict[str, str]] = {
    "semidavil": {"training.method": "semidavil"},
    "semivl": {
        "training.method": "semivl", "model.fusion": "vlga", "model.captions": "class_names",
        "model.caption_prompt": "", "loss.name": "ce",
    },
    "unimatch": {"training.method": "unimatch", "model.fusion": "none", "loss.name": "ce"},
    "unimatch_v2": {"training.method": "unimatch_v2", "model.fusion": "none", "loss.name": "ce"},
    "sdepth": {
        "training.method": "sdepth", "model.fusion": "none", "loss.name": "ce",
        "data.selection": "depth",
    },
}  # fmt: skip
_RECIPE: dict[str, Any] = {
    "training.method": "semidavil", "model.fusion": None, "model.captions": None,
    "model.caption_prompt": None, "loss.name": None, "data.selection": None,
}  # fmt: skip


def semivl(base: Config, which: Selection) -> list[Config]:
    """Question: how far is SemiDAViL above SemiVL, with and without a domain shift?

    Feeds: the SemiVL table.
    Cost: 2 methods x 4 budgets = 8 runs per benchmark and seed.
    """
    variants = [RIVALS["semidavil"], RIVALS["semivl"]]
    return everywhere(base, which, variants, usual=(100, 200, 500, 1000))


def methods(base: Config, which: Selection) -> list[Config]:
    """Question: how does SemiDAViL compare with its parts and its rivals at few labels?

    Feeds: the comparison of methods and the qualitative grid.
    Cost: 8 methods at 100 labels per benchmark and seed; source_only draws none, at budget 0. sdepth
    needs depth: Cityscapes' disparity maps, or an estimator that data.depth names.

    With `--benchmark cityscapes-cityscapes --budgets 186 372 744 1488`, the table `ssl` shows it beside what
    semi-supervised papers report.
    """
    trained = [{"training.method": name} for name in ("target_only", "supervised")]
    cells = []
    for benchmark in which.benchmarks:
        here = replace(which, benchmarks=(benchmark,))
        if BENCHMARKS[benchmark].source is not None:
            alone = [{"training.method": "source_only"}]
            cells += everywhere(base, replace(here, budgets=(0,)), alone)
        depth = BENCHMARKS[benchmark].has_disparity or base.data.depth != "disparity"
        rivals = [recipe for name, recipe in RIVALS.items() if depth or name != "sdepth"]
        kind = BENCHMARKS[benchmark].kind
        own = [
            {"training.method": name}
            for name in of_plugins("TRAITS", METHODS)
            if METHODS[name].kind == kind and METHODS[name].streams != {"source"}
        ]
        cells += everywhere(base, here, [*trained, *rivals, *own], usual=(100,))
    return cells


# Each part of SemiDAViL with the setting that switches it off.
PARTS: dict[str, tuple[str, str]] = {
    "VL": ("model.vision_init", "random"),
    "DLG": ("model.fusion", "none"),
    "CT": ("training.consistency_weight", "0.0"),
    "DyCE": ("loss.name", "ce"),
}


RELEASED = "semidavil_released"  # of `components`: every part on, as the released code has it


def components(base: Config, which: Selection) -> list[Config]:
    """Question: what does each part of SemiDAViL add, alone and together with the others?

    The parts: vision-language initialisation (VL), dense language guidance (DLG), consistency
    training (CT) and DyCE. Beside all of them together stands what the released code would do if it
    ran: its language is trivial, one pooled sentence that says nothing of places.
    Feeds: the component figure.
    Cost: 2^4 + 1 = 17 runs at 100 labels per benchmark and seed.
    """
    variants = [
        {setting: off for (setting, off), on in zip(PARTS.values(), chosen, strict=True) if not on}
        for chosen in itertools.product((True, False), repeat=len(PARTS))
    ]
    variants.append({"training.method": RELEASED})
    return everywhere(base, which, variants, usual=(100,))


def _parts_of(params: Mapping[str, str]) -> str:
    if params["training.method"] == RELEASED:
        return "released code"
    on = [part for part, (setting, off) in PARTS.items() if params[setting] != off]
    return "+".join(on) or "nothing"


def captions(base: Config, which: Selection) -> list[Config]:
    """Question: does it matter what the caption says?

    The preset's captions (BLIP-2's in `paper`, those of `positions` elsewhere), of whole images and of
    the windows that a crop shows; no caption, and fixed class names. The preset's captions shuffled,
    so of other images, show whether the content matters at all; `oracle` (from the labels) bounds
    what a captioner could add: it is no method. BLIP captions on real photographs only.
    Feeds: the caption figure.
    Cost: 6 variants (8 on real images) at 100 labels per benchmark and seed. Windows take 3 captions
    of a Cityscapes image and 8 of one of GTA5 or SYNTHIA where there was one.
    """
    own = base.model.captions
    names = [own, "none", "class_names", f"{SHUFFLED}{own}", ORACLE, "positions"]
    if not base.data.toy:
        names += ["blip:Salesforce/blip-image-captioning-base", "blip2:Salesforce/blip2-opt-2.7b"]
    names += [name for name in of_plugins("CAPTIONERS", CAPTIONERS) if name != own]
    # A prompt is that of the preset's captioner, and of no other.
    variants = [
        {"model.captions": name} | ({} if name.endswith(own) else {"model.caption_prompt": ""})
        for name in names
    ]
    variants.insert(1, {"model.caption_region": "window"})
    return everywhere(base, which, variants, usual=(100,))


def _captioner_of(params: Mapping[str, str]) -> str:
    names = ("model.captions", "model.caption_region", "model.caption_prompt")
    return captions_name(*(params[name] for name in names))


def encoders(base: Config, which: Selection) -> list[Config]:
    """Question: which image encoder is best, and what is dense language guidance worth with each?

    The preset's own encoder; vision-language models of CLIP ViT-B/16's size; encoders that know no
    language, beside the text of the preset's model. On the bundled CLIP: itself, and three towers that
    start at random. Each with DLG and without language, at the same steps, batches and crops; what that
    costs is measured: parameters, and milliseconds for an image.
    Feeds: the encoder figure, accuracy against milliseconds and parameters.
    Cost: 12 encoders x 2 = 24 runs at 100 labels per benchmark and seed (4 x 2 = 8 with the bundled
    CLIP); 2 are those of `attention_controls`.
    """
    chosen = compared.encoders_beside(base.model.vlm)
    variants = [{**one, "model.fusion": name} for one in chosen for name in compared.FUSIONS]
    return everywhere(base, which, variants, usual=(100,))


SENSITIVITY: dict[str, tuple[float | str, ...]] = {
    "loss.hard_fraction": (0.1, 0.2, 0.5, 1.0),
    "loss.omega": (0.0, 0.25, 0.5, 0.75, 1.0),
    "training.confidence": (0.0, 0.5, 0.7, 0.9, 0.95),
    "training.ema": (0.9, 0.97, 0.99, 0.999),
    "training.consistency_weight": (0.0, 0.5, 1.0, 2.0),
    "training.consistency_over": ("all", "confident"),
    "training.supervised": ("per_stream", "joint"),
    "training.source_share": (0.1, 0.2, 0.5),
    "data.sampling": ("uniform", "rare"),
}


def sensitivity(base: Config, which: Selection) -> list[Config]:
    """Question: how much does the result hang on DyCE's h and omega, threshold, EMA and lambda?

    And on readings of the paper: what the consistency loss is divided by, whether source and labelled
    target are mined apart, and what the source weighs. And on sampling the source by its rare classes,
    which the paper does not.
    Feeds: the sensitivity curves.
    Cost: the preset's own setting and up to 27 others, one changed at a time, at 100 labels.
    """
    variants: list[dict[str, Any]] = [{}]
    variants += [{name: value} for name, values in SENSITIVITY.items() for value in values]
    return everywhere(base, which, variants, usual=(100,))


def _settings_of(params: Mapping[str, str]) -> str:
    return ",".join(f"{name.rpartition('.')[2]}={params[name]}" for name in SENSITIVITY)


def synapse(base: Config, which: Selection) -> list[Config]:
    """Question: does DyCE help rare organs in other semi-supervised methods?

    On scans drawn by the seed, or with --set volumes.split=genericssl or dhc on a publication's.
    Feeds: the Synapse figure, Dice and surface distance per organ.
    Cost: 2 methods x 2 losses = 4 runs at 20% labelled scans per seed.
    """
    variants = [
        {"training.method": method, "loss.name": loss}
        for method, loss in itertools.product(("uamt", "urpc"), ("dyce", "ce"))
    ]
    return everywhere(base, which, variants, usual=(4,))


def baselines(base: Config, which: Selection) -> list[Config]:
    """Question: what does each stream of data add: source, labelled target, unlabelled target?

    Feeds: the reference lines of every comparison on the same benchmark.
    Cost: 17 runs per benchmark and seed: source_only once, semidavil at 6 budgets, target_only and
    supervised at 5.

    Source-only training draws no target label, so it is one cell, at budget 0, where target_only has
    nothing to learn from and supervised would be source_only again.
    """
    cells: list[Config] = []
    for seed, benchmark in itertools.product(which.seeds, which.benchmarks):
        known = budgets_of(benchmark, which.budgets)
        here = base.replace({"seed": seed, "data.benchmark": benchmark})
        if known and BENCHMARKS[benchmark].source is not None:
            cells += product(here, {"data.budget": [0], "training.method": ["source_only"]})
        for budget in known:
            methods = ["target_only", "supervised", "semidavil"] if budget else ["semidavil"]
            cells += product(here, {"data.budget": [budget], "training.method": methods})
    return cells


_SOURCES = ("gta5-cityscapes", "synthia-cityscapes")

_GRIDS: dict[str, Grid] = {
    "attention": Grid(attention, {"model.fusion": "dlg"}, _SOURCES),
    "attention_controls": Grid(attention_controls, {"model.fusion": "blank"}, _SOURCES[:1]),
    "losses": Grid(losses, {"loss.name": "dyce"}, _SOURCES),
    "loss_controls": Grid(
        loss_controls,
        {
            "loss.name": "dyce",
            "training.consistency_scale": "fixed",
            "training.consistency_weight": None,
        },
        _SOURCES[:1],
        name_of=_loss_and_way,
    ),
    "semivl": Grid(
        semivl, _RECIPE, (*_SOURCES, "cityscapes-cityscapes"), shown=("training.method",)
    ),
    "methods": Grid(methods, _RECIPE, _SOURCES, shown=("training.method",)),
    "synapse": Grid(synapse, {"training.method": "uamt", "loss.name": "ce"}, ("synapse",)),
    "components": Grid(
        components,
        {"training.method": None} | {setting: None for setting, _ in PARTS.values()},
        _SOURCES[:1],
        name_of=_parts_of,
    ),
    "captions": Grid(
        captions,
        dict.fromkeys(("model.captions", "model.caption_region", "model.caption_prompt")),
        _SOURCES[:1],
        name_of=_captioner_of,
    ),
    "encoders": Grid(
        encoders,
        {**dict.fromkeys(compared.SETTINGS), "model.fusion": "dlg"},
        _SOURCES[:1],
        name_of=compared.variant_name,
    ),
    "sensitivity": Grid(
        sensitivity, dict.fromkeys(SENSITIVITY), _SOURCES[:1], name_of=_settings_of
    ),
    "baselines": Grid(baselines, {"training.method": "semidavil"}, _SOURCES),
}
GRIDS = Table("GRIDS", _GRIDS, own_grid)
SEARCH = "search"  # no grid: its cells are chosen on the way, see `sweeps.run.search`
OBJECTIVES = ("miou", "miou-latency")  # of a search
ALL = "all"  # every grid, one after the other; what one has finished the next need not run
