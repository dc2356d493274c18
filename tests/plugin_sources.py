"""Plugins that tests write into files."""

# Without PyTorch: what names, grids and Configs need.
LIGHT = """
from semidavil.names import Traits

class Mine:
    def __init__(self, towers, dim): ...
    def forward(self, vision, language): ...

def half(num_classes, ignore_index=255): ...

FUSIONS = {"mine": Mine, "deaf": Mine}
VISION_ONLY = ["deaf"]
LOSSES = {"half": half}
METHODS = {"steady": Mine}
TRAITS = {"steady": Traits("images", frozenset({"source", "labelled"}), data_parallel=True)}
CAPTIONERS = {"silence": half}
ENCODERS = {"flat": half}
GRIDS = {"ladder": [{"model.fusion": "dlg"}, {"model.fusion": "mine"}]}
"""

# A nearest-word attention, a halved loss, a method and a captioner that train.
WORKING = '''
"""Attention by the nearest word alone."""

from torch import nn

from semidavil.losses import CrossEntropy
from semidavil.methods.supervised import Supervised
from semidavil.models.readout import Readout, to_grid, to_pixels
from semidavil.names import Traits


class Nearest(nn.Module):
    def __init__(self, towers, dim):
        super().__init__()
        self.pixel, self.word = nn.Linear(towers.vision_dim, dim), nn.Linear(towers.language_dim, dim)
        self.readout = Readout(towers.vision_dim, dim, dim)

    def forward(self, vision, language):
        pixels, words = to_pixels(vision), self.word(language.tokens)
        scores = (self.pixel(pixels) @ words.mT).masked_fill(~language.mask[:, None], -1e4)
        return to_grid(self.readout(pixels, scores.softmax(-1) @ words), *vision.shape[-2:])


class Half(CrossEntropy):
    def forward(self, logits, targets):
        return super().forward(logits, targets) / 2


class Steady(Supervised):
    pass


class Colours:
    def __call__(self, images):
        return [f"a picture of {sum(image.size)}" for image in images]


FUSIONS = {"nearest": Nearest}
LOSSES = {"half": Half}
METHODS = {"steady": Steady}
TRAITS = {"steady": Traits("images", frozenset({"source", "labelled"}))}
CAPTIONERS = {"colours": lambda argument, setting: Colours()}
GRIDS = {
    "ladder": {
        "about": "Question: is the nearest word enough?",
        "variants": {
            "all words": {"model.fusion": "dlg"},
            "nearest": {"model.fusion": "nearest", "loss.name": "half", "training.method": "steady"},
        },
        "budgets": [4],
    }
}
'''
