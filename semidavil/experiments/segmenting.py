"""A folder of predictions: what is written of each picture and video, what is done, and scores."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from semidavil.data.described import reader_of
from semidavil.data.files import DataError
from semidavil.data.images import orientation_of, read_indices, read_upright
from semidavil.evaluation.written import (
    Done,
    Source,
    confusion_of,
    file_of,
    label_of,
    overlay,
    write_classes,
    write_pictures,
)
from semidavil.experiments.predictor import Predictor
from semidavil.metrics import summarise


@dataclass(frozen=True)
class Scores:
    """Scores against labels, as `metrics.summarise` gives them, of each picture and of all together."""

    per_picture: dict[str, dict[str, float]]
    together: dict[str, float]


class Segmenting:
    """Predictions of one run into one folder.

    Args:
        out: created if it is not there.
        kinds: of `names.PICTURES`.
        caption: what every picture is said to show; None asks the run's captioner.
    """

    def __init__(
        self, predictor: Predictor, out: Path, kinds: Sequence[str], caption: str | None
    ) -> None:
        self.predictor, self.out, self.kinds, self.caption = predictor, out, kinds, caption
        self.benchmark = predictor.benchmark
        self.palette = self.benchmark.palette
        out.mkdir(parents=True, exist_ok=True)
        write_classes(out / "classes.csv", self.benchmark.classes, self.palette)
        about = f"{predictor.fingerprint} {caption!r} {','.join(kinds)}"
        self.done = Done(out / "done.jsonl", about)

    def segment(self, source: Source, advance: Callable[[float], None]) -> None:
        """Segments a picture or a video and writes what is asked for.

        Args:
            advance: told the share of the source that has been done since the last call.

        Raises:
            DataError: it cannot be read; nothing is written of a picture, and no video is left half.
        """
        if source.is_video:
            self._segment_video(source, advance)
            return
        image = read_upright(source.path)
        seen = self.predictor(image, self.caption)
        write_pictures(
            self.out, source.name, self.kinds, image, seen.labels, seen.confidence, self.palette
        )
        self.done.add(source, float(seen.confidence.mean()), seen.captions)
        advance(1)

    def _segment_video(self, source: Source, advance: Callable[[float], None]) -> None:
        """An MP4 with the classes' colours over every frame; captioned anew every second."""
        video = cv2.VideoCapture(str(source.path))
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        count = max(1, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        path = self.out / f"{source.name}_overlay.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        writer, caption, confidence, frames = None, self.caption, 0.0, 0
        try:
            for number, frame in enumerate(_frames(video)):
                image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                if self.caption is None and number % max(1, round(rate)) == 0:
                    caption = None
                seen = self.predictor(image, caption)
                caption = caption or (seen.captions[0] if len(seen.captions) == 1 else None)
                if writer is None:
                    size = image.shape[1::-1]
                    writer = cv2.VideoWriter(
                        str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), rate, size
                    )
                    if not writer.isOpened():
                        raise DataError(f"{path} cannot be written: this OpenCV writes no MP4")
                drawn = overlay(image, self.palette[seen.labels])
                writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
                confidence, frames = confidence + float(seen.confidence.mean()), frames + 1
                advance(1 / count)
        finally:
            video.release()
            if writer is not None:
                writer.release()
        if not frames:
            raise DataError(f"the video {source.path} cannot be read")
        unfinished.replace(path)
        self.done.add(source, confidence / frames, [caption or ""])

    def score(self, sources: Sequence[Source], labels: Path) -> tuple[Scores, list[str]]:
        """Scores of the pictures that are done and have a label, and why others have none."""
        classes = self.benchmark.classes
        target = self.benchmark.target
        lookup, reader = self.benchmark.lookup(target), reader_of(target, labels)
        total = np.zeros((len(classes), len(classes)), dtype=np.int64)
        per_picture, problems = {}, []
        for source in sources:
            if source.is_video or not self.done.has(source):
                continue
            try:
                label = label_of(source, labels, reader)
                predicted = read_indices(file_of(self.out, source.name, "ids"))
                confusion = confusion_of(
                    predicted, label, reader, lookup, len(classes), orientation_of(source.path)
                )
            except DataError as error:
                problems.append(str(error))
                continue
            total += confusion
            per_picture[source.name] = summarise(confusion, classes)
        return Scores(per_picture, summarise(total, classes, self.benchmark.subsets)), problems

    def write_table(self, sources: Sequence[Source], scores: Scores | None) -> Path:
        """`predictions.csv`: each picture's confidence, caption and, where there are labels, scores."""
        path = self.out / "predictions.csv"
        shown = ("miou", "pixel_accuracy") if scores else ()
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["name", "file", "confidence", *shown, "caption"])
            for row in (self.done.rows[s.name] for s in sources if self.done.has(s)):
                own = scores.per_picture.get(row["name"], {}) if scores else {}
                values = [f"{own[name]:.2f}" if name in own else "" for name in shown]
                rows.writerow(
                    [row["name"], row["file"], row["confidence"], *values, row["caption"]]
                )
        return path


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame
