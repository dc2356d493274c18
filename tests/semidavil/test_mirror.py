"""Captions of mirrored images."""

import numpy as np
import pytest

from semidavil.language.mirror import flip_caption
from semidavil.language.positions import phrases, sentence
from semidavil.toy.clip.pretrain import Scenes

CHANGED = {
    "car on the left": "car on the right",
    "building on the left and right, sky": "building on the right and left, sky",
    "Right lane is empty, on the LEFT a bus": "Left lane is empty, on the RIGHT a bus",
    "a car parked to the right of a bus": "a car parked to the left of a bus",
    "a bike left on the right side": "a bike left on the left side",
    "a man left the right lane": "a man left the left lane",
    "a left-hand bend, then a right hand one": "a right-hand bend, then a left hand one",
    "a tree in the top left corner": "a tree in the top right corner",
    "a sign at the far right, a bus upper-left": "a sign at the far left, a bus upper-right",
    "the leftmost car of three": "the rightmost car of three",
    "cars seen from left to right": "cars seen from right to left",
    "a truck is left of the tree": "a truck is right of the tree",
    "a woman, left, and a dog (right)": "a woman, right, and a dog (left)",
    "left: a bus; right: a tram": "right: a bus; left: a tram",
    "a car turning left at the lights": "a car turning right at the lights",
    "a bag in his right hand": "a bag in his left hand",
    "trees at left, a fence on right": "trees at right, a fence on left",
    "a bus on the right in front of the house": "a bus on the left in front of the house",
    "trees left and right": "trees right and left",
    "the left car is red": "the right car is red",
}
UNCHANGED = (
    "",
    "a street with cars and a bright leftover wall",
    "a man left the lane",
    "what is left of it",
    "all that's left of the house is a wall",
    "there is not much left of the road",
    "a turn left sign",
    "a no right turn sign",
    'a sign that says "keep to the left"',
    "a sign that says 'left lane ends'",
    "a car has the right of way",
    "driving the right way at the right time",
    "a dog right next to a man",
    "the only bike left in the street",
    "two streets that meet at right angles",
    "a bus that left half an hour ago",
    "the train has left.",
)


@pytest.mark.parametrize(("text", "flipped"), CHANGED.items())
def test_what_says_where_something_is_changes_sides(text: str, flipped: str) -> None:
    assert flip_caption(text) == flipped
    assert flip_caption(flipped) == text


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_says_something_else_stays(text: str) -> None:
    assert flip_caption(text) == text


def test_sentences_of_positions_are_mirrored_exactly() -> None:
    """The sentence of mirrored shares is the mirrored sentence, for all kinds of places."""
    rng, classes = np.random.default_rng(0), ("road", "traffic light", "car", "bus")
    seen = set()
    for _ in range(300):
        rows, columns = rng.dirichlet([0.3] * 3, 4).T, rng.dirichlet([0.3] * 3, 4).T
        text = sentence(phrases(classes, rows, columns, 0.0))
        mirrored = sentence(phrases(classes, rows, columns[::-1], 0.0))
        assert flip_caption(text).replace("right and left", "left and right") == mirrored
        seen |= set(text.split())
    assert {"left", "right", "top", "bottom", "centre", "and"} <= {w.strip(",") for w in seen}


def test_every_side_in_the_texts_of_the_bundled_clip_is_a_place() -> None:
    """The recipe of its weights has swapped each such word, whatever stands beside it."""
    scenes, rng = Scenes(family=7, count=8), np.random.default_rng(0)
    texts = [scenes.crop(rng)[1] for _ in range(200)]
    assert any("left" in text for text in texts)
    for text in texts:
        swapped = text.replace("left", "*").replace("right", "left").replace("*", "right")
        assert flip_caption(text) == swapped
