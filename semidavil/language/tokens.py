"""The token features of captions, computed once and kept on disk.

    tokens = CaptionTokens(vlm.text, texts, cache_dir / "tokens")
    language = tokens(["a road", "sky at the top"])          # on the CPU

A step looks its captions up and runs no text tower. Features lie in one memory-mapped file for each text
tower, which all workers and runs of a machine share. For the 57,000 captions of the paper's scale, mirrored
ones included, that is 2 to 3 GB.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track

from semidavil.data.arrays import RAW, Arrays
from semidavil.full_disk import on_disk
from semidavil.models.text import Language, TextEncoder

CHUNK = 64  # batches of captions that are written at once: what an interruption costs


class CaptionTokens:
    """Looks up the token features of captions; those of `texts` are there from the start.

    It can be sent to other processes, and maps the file anew there.

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
        self.arrays, wanted = Arrays(folder / name, RAW), dict.fromkeys(texts)
        if not self._missing(wanted):
            return
        folder.mkdir(parents=True, exist_ok=True)
        # Of two processes, one computes and the other reads.
        with FileLock(folder / f"{name}.lock"), on_disk(folder):
            self.arrays.reload()
            self._add(encoder, self._missing(wanted), progress)

    def __call__(self, captions: Sequence[str]) -> Language:
        """Token features of captions, on the CPU.

        Raises:
            KeyError: a caption that is not there.
        """
        stored = (self.arrays.read(self.arrays.entries[text]) for text in captions)
        # Copied: what is returned may be pinned, and outlives the file.
        return Language.of([torch.from_numpy(rows.view(np.float32).copy()) for rows in stored])

    def _missing(self, texts: Iterable[str]) -> list[str]:
        return [text for text in texts if text not in self.arrays.entries]

    def _add(self, encoder: TextEncoder, texts: Sequence[str], progress: bool) -> None:
        """Encodes and appends."""
        step = CHUNK * encoder.BATCH
        starts = range(0, len(texts), step)
        try:
            with one_thread(encoder.device):
                for first in track(
                    starts, "caption tokens", disable=not progress or len(starts) < 2
                ):
                    part = texts[first : first + step]
                    for text, rows in zip(part, encoder.features(part), strict=True):
                        self.arrays.append(text, None, rows.cpu().numpy().view(np.uint8))
                    self.arrays.commit()
        finally:
            self.arrays.close()


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
