"""The token features of captions, computed once and kept on disk.

    tokens = CaptionTokens(vlm.text, texts, cache_dir / "tokens")
    language = tokens(["a road", "sky at the top"])          # on the CPU

A step looks its captions up and runs no text tower. Features lie in one memory-mapped file for each text
tower, which all workers and runs of a machine share; the rows beside it say which caption is where. For the
57,000 captions of the paper's scale, mirrored ones included, that is 2 to 3 GB.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track

from semidavil.data.files import append_rows, read_rows
from semidavil.full_disk import on_disk
from semidavil.models.text import Language, TextEncoder

CHUNK = 64  # batches of captions that are written at once: what an interruption costs


class CaptionTokens:
    """Looks up the token features of captions; those of `texts` are there from the start.

    It can be sent to other processes, and reads the file anew there.

    Args:
        encoder: the text tower, for what `folder` does not hold.
        texts: all captions that will be asked for.
        folder: where features are kept; processes may share it.

    Raises:
        DiskFull: features that are written are kept.
    """

    def __init__(
        self, encoder: TextEncoder, texts: Iterable[str], folder: Path, progress: bool = False
    ) -> None:
        name = hashlib.blake2b(encoder.identity().encode(), digest_size=8).hexdigest()
        self.dim = encoder.dim
        self.rows, self.features = folder / f"{name}.jsonl", folder / f"{name}.f32"
        wanted = dict.fromkeys(texts)
        self.places = self._known()
        if any(text not in self.places for text in wanted):
            folder.mkdir(parents=True, exist_ok=True)
            # Of two processes, one computes and the other reads.
            with FileLock(folder / f"{name}.lock"):
                self.places = self._known()
                missing = [text for text in wanted if text not in self.places]
                with on_disk(folder):
                    self._add(encoder, missing, progress)
        self.places = {text: self.places[text] for text in wanted}
        self.end = self._end()

    def __call__(self, captions: Sequence[str]) -> Language:
        """Token features of captions, on the CPU.

        Raises:
            KeyError: a caption that was not among `texts`.
        """
        # As far as is known: another process may be in the middle of what comes after.
        values = np.memmap(self.features, np.float32, "r", shape=(self.end, self.dim))
        places = [self.places[text] for text in captions]
        # Copied: what is returned may be pinned, and outlives the file.
        return Language.of(
            [torch.from_numpy(values[start : start + n].copy()) for start, n in places]
        )

    def _known(self) -> dict[str, tuple[int, int]]:
        """Where each caption's tokens begin, and how many they are; only those that the file really holds."""
        held = self.features.stat().st_size // (4 * self.dim) if self.features.exists() else 0
        return {
            row["text"]: (row["start"], row["tokens"])
            for row in read_rows(self.rows)
            if row["start"] + row["tokens"] <= held
        }

    def _end(self) -> int:
        """Behind the last of them."""
        return max((start + n for start, n in self.places.values()), default=0)

    def _add(self, encoder: TextEncoder, texts: Sequence[str], progress: bool) -> None:
        """Encodes and appends; a caption is known once its features are in the file."""
        end = self._end()
        step = CHUNK * encoder.BATCH
        starts = range(0, len(texts), step)
        with one_thread(encoder.device):
            for first in track(starts, "caption tokens", disable=not progress or len(starts) < 2):
                part = texts[first : first + step]
                features = encoder.features(part)
                with self.features.open("r+b" if self.features.exists() else "w+b") as file:
                    file.truncate(4 * end * self.dim)  # what an interruption has left behind
                    file.seek(0, os.SEEK_END)
                    file.write(b"".join(row.cpu().numpy().tobytes() for row in features))
                    file.flush()
                    os.fsync(file.fileno())
                lengths = [len(row) for row in features]
                places = zip(np.cumsum([end, *lengths[:-1]]).tolist(), lengths, strict=True)
                added = dict(zip(part, places, strict=True))
                append_rows(
                    self.rows,
                    [{"text": t, "start": start, "tokens": n} for t, (start, n) in added.items()],
                )
                self.places |= added
                end += sum(lengths)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One CPU thread: features must not depend on how many the process that came first had."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
