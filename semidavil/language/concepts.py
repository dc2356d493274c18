"""What the benchmarks' classes mean, in words: the concepts that their definitions name.

From the class definitions on Cityscapes' web site, as SemiVL (ECCV 2024) takes its prompts from data
sets' annotation guidelines; the choice of words is ours.
"""

from collections.abc import Sequence

_CONCEPTS: dict[str, tuple[str, ...]] = {
    "road": ("road", "street", "lane"),
    "sidewalk": ("sidewalk", "pavement", "curb"),
    "building": ("building", "house", "skyscraper", "garage"),
    "wall": ("wall", "individual standing wall"),
    "fence": ("fence", "railing"),
    "pole": ("pole", "post"),
    "traffic light": ("traffic light", "signal"),
    "traffic sign": ("traffic sign", "sign"),
    "vegetation": ("vegetation", "tree", "bush", "hedge"),
    "terrain": ("terrain", "grass", "soil", "sand"),
    "sky": ("sky",),
    "person": ("person", "pedestrian"),
    "rider": ("rider", "cyclist", "motorcyclist"),
    "car": ("car", "van", "vehicle"),
    "truck": ("truck", "lorry"),
    "bus": ("bus", "coach"),
    "train": ("train", "tram"),
    "motorcycle": ("motorcycle", "motorbike", "moped", "scooter"),
    "bicycle": ("bicycle", "bike"),
}
_SAME_AS = {  # CamVid's names
    "pavement": "sidewalk", "tree": "vegetation", "sign": "traffic sign", "pedestrian": "person",
    "bicyclist": "rider",
}  # fmt: skip


def concepts_of(name: str, synonyms: Sequence[str] = ()) -> tuple[str, ...]:
    """The concepts of a class, its own name first: its synonyms, or else those that are known here."""
    known = synonyms or _CONCEPTS.get(_SAME_AS.get(name, name), ())
    return (name, *(concept for concept in known if concept != name))
