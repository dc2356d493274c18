"""Milliseconds that one core needs for a training batch, and where they go.

    python benchmarks/bench_loading.py [--preset toy] [--steps 300]

"cold" meets most images for the first time, as a short run does, and decodes them; "warm" has them in
memory, as the later epochs of a long run do. CPU time, so that a busy machine does not disturb it.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import torch

from semidavil.config import preset
from semidavil.data.loading import TrainBatches
from semidavil.data.streams import image_paths
from semidavil.data.transforms import cutmix_box, strong_view, weak_view
from semidavil.language.captions import Caption


def milliseconds(call: Callable[[int], object], steps: int) -> float:
    """Mean CPU time of `call(step)` over `steps` steps."""
    start = time.process_time()
    for step in range(steps):
        call(step)
    return 1000 * (time.process_time() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--data-root", default="", help="for presets without generated data")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    config = preset(options.preset, {"runtime.data_root": options.data_root})
    captions = dict.fromkeys(image_paths(config), Caption(("a road, a car on the left",)))
    batches = TrainBatches(config, captions, ("source", "labelled", "unlabelled"))
    steps = min(options.steps, len(batches))
    cold = milliseconds(batches.__getitem__, steps)
    warm = milliseconds(batches.__getitem__, steps)
    print(
        f"{options.preset}: {cold:.2f} ms of one core per batch cold, {warm:.2f} warm; of the warm"
    )

    size, crop = config.training.batch_size, config.data.crop
    streams = [name for name in ("source", "labelled", "unlabelled") if name in batches.samples]
    image, label = batches.images["labelled"](batches.samples["unlabelled"][0])
    view = weak_view(image, label, crop).image
    parts: dict[str, tuple[int, Callable[[int], object]]] = {
        "weak views": (size * len(streams), lambda _: weak_view(image, label, crop)),
        "strong views": (size, lambda _: strong_view(view)),
        "CutMix masks": (size, lambda _: cutmix_box(crop, config.training.cutmix)),
    }
    rest = warm
    with torch.random.fork_rng(devices=[]):
        for name, (count, call) in parts.items():
            # Random parameters make single calls uneven: time a batch's worth at once.
            cost = milliseconds(lambda _, n=count, f=call: [f(0) for _ in range(n)], steps)
            rest -= cost
            print(f"  {name:<13} {count:>3} a batch {cost:6.2f} ms {cost / warm:5.0%}")
    print(f"  {'the rest':<25} {rest:6.2f} ms {rest / warm:5.0%}")


if __name__ == "__main__":
    main()
