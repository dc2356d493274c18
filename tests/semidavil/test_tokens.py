"""Captions' token features on disk: computed once, by whoever comes first, to the last bit the same."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from semidavil.data import arrays
from semidavil.full_disk import DiskFull
from semidavil.language import tokens
from semidavil.language.tokens import CaptionTokens
from semidavil.models.vlm import VLM, load_vlm

TEXTS = [f"{what} {where}" for what in ("a road", "the sky", "cars") for where in ("left", "right")]


@pytest.fixture(scope="module")
def toy() -> VLM:
    return load_vlm("toy", "bundled")


def test_it_gives_what_the_text_tower_gives(toy: VLM, tmp_path: Path) -> None:
    table = CaptionTokens(toy.text, [*TEXTS, ""], tmp_path)
    asked = ["the sky left", "", "cars right", "the sky left"]
    found, expected = table(asked), toy.text(asked)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=1e-5)
    assert torch.equal(found.mask, expected.mask)
    assert found.lengths == expected.lengths
    with pytest.raises(KeyError):
        table(["a text that nobody announced"])


def test_nothing_is_computed_twice_and_more_is_added(
    toy: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = toy.text._encode
    monkeypatch.setattr(toy.text, "_encode", lambda part: encoded.extend(part) or encode(part))
    first = CaptionTokens(toy.text, TEXTS[:4], tmp_path)(TEXTS[:4])
    more = CaptionTokens(toy.text, TEXTS, tmp_path)
    assert encoded == TEXTS
    assert torch.equal(more(TEXTS[:4]).tokens, first.tokens)
    torch.testing.assert_close(more(TEXTS).tokens, toy.text(TEXTS).tokens, rtol=0, atol=1e-5)
    carried = pickle.loads(pickle.dumps(more))  # to a process that loads batches
    assert torch.equal(carried(TEXTS).tokens, more(TEXTS).tokens)
    assert len(pickle.dumps(more)) < 2000, "the features themselves are not sent"


def test_what_another_process_computed_meanwhile_is_not_computed_again(
    toy: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the first look and the lock, and has begun with other captions."""
    encoded: list[str] = []
    encode = toy.text._encode

    class LateLock(FileLock):
        def acquire(self, *args: Any, **options: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(tokens, "FileLock", FileLock)
                CaptionTokens(toy.text, TEXTS[2:], tmp_path)
            patch_encode()
            return super().acquire(*args, **options)

    def patch_encode() -> None:
        monkeypatch.setattr(toy.text, "_encode", lambda part: encoded.extend(part) or encode(part))

    monkeypatch.setattr(tokens, "FileLock", LateLock)
    table = CaptionTokens(toy.text, TEXTS, tmp_path)
    assert encoded == TEXTS[:2]
    torch.testing.assert_close(table(TEXTS).tokens, toy.text(TEXTS).tokens, rtol=0, atol=1e-5)


def test_bits_depend_on_neither_threads_nor_what_came_before(toy: VLM, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = CaptionTokens(toy.text, TEXTS, tmp_path / "one")(TEXTS)
        torch.set_num_threads(2)
        two = CaptionTokens(toy.text, TEXTS[3:], tmp_path / "two")
        two = CaptionTokens(toy.text, reversed(TEXTS), tmp_path / "two")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(two(TEXTS).tokens, one.tokens)


def test_other_weights_have_a_file_of_their_own(toy: VLM, tmp_path: Path) -> None:
    bundled = CaptionTokens(toy.text, TEXTS, tmp_path)
    random = CaptionTokens(load_vlm("toy", "none").text, TEXTS, tmp_path)
    assert random.arrays.file != bundled.arrays.file
    assert not torch.equal(random(TEXTS).tokens, bundled(TEXTS).tokens)


def test_an_interruption_between_features_and_rows_costs_what_was_not_listed(
    toy: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CaptionTokens(toy.text, TEXTS, tmp_path / "whole")(TEXTS)
    first = CaptionTokens(toy.text, TEXTS[:2], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "append_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            CaptionTokens(toy.text, TEXTS[2:], tmp_path)
    again = CaptionTokens(toy.text, TEXTS, tmp_path)
    assert torch.equal(again(TEXTS).tokens, expected.tokens)
    # Rows without their features, as when one of both files was not copied.
    os.truncate(first.arrays.file, 0)
    assert torch.equal(CaptionTokens(toy.text, TEXTS, tmp_path)(TEXTS).tokens, expected.tokens)


def test_what_another_process_is_writing_disturbs_no_look_up(toy: VLM, tmp_path: Path) -> None:
    table = CaptionTokens(toy.text, TEXTS, tmp_path)
    expected = table(TEXTS)
    with table.arrays.file.open("ab") as file:
        file.write(b"12345")  # no whole number yet
    assert torch.equal(table(TEXTS).tokens, expected.tokens)
    assert torch.equal(CaptionTokens(toy.text, TEXTS, tmp_path)(TEXTS).tokens, expected.tokens)
    more = CaptionTokens(toy.text, ["a bus"], tmp_path)
    torch.testing.assert_close(
        more(["a bus"]).tokens, toy.text(["a bus"]).tokens, rtol=0, atol=1e-5
    )


def test_a_full_disk_is_named(toy: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "append_rows", full)
    with pytest.raises(DiskFull, match=str(tmp_path)):
        CaptionTokens(toy.text, TEXTS, tmp_path)
