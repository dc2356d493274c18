"""Steps that a GPU replays, with a recording that computes on the CPU: which steps, on what, and when not."""

import copy
from contextlib import nullcontext

import pytest
import torch
from small_method import make_batch, make_method, make_segmenter

from semidavil.config import preset
from semidavil.data.augment import finish
from semidavil.device import make_deterministic
from semidavil.methods.base import Batch, Losses
from semidavil.models.text import Language
from semidavil.names import METHODS
from semidavil.replay import MOST, Recording, Replay, copied, named_tensors
from semidavil.step import TrainingStep
from semidavil.train import Report, open_experiment, train

CPU = torch.device("cpu")
STREET = {name: method for name, method in METHODS.items() if method.kind == "images"}
REPLAYED = {"supervised", "source_only", "target_only", "semidavil", "semidavil_released", "sdepth"}


class OnTheCPU(Replay):
    """Records without computing, as a GPU does, and computes on the recording's own inputs."""

    def _record(self, batch: Batch, step: int) -> Recording:
        inputs, losses = copied(batch), {}

        def replay() -> None:
            losses.update(self.compute(inputs, step))

        return Recording(inputs, replay, losses)


class Unable(Replay):
    def _record(self, batch: Batch, step: int) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def of_length(batch: Batch, tokens: int) -> Batch:
    """The batch with captions padded to so many tokens."""
    captions = {
        name: Language.joined([part["language"], Language.of([torch.zeros(tokens, 5)])])
        for name, part in batch.items()
    }
    return {
        name: {**part, "language": captions[name][: len(part["language"])]}
        for name, part in batch.items()
    }


def test_replayed_steps_are_the_same_to_the_last_bit(tiny_toy: dict[str, str]) -> None:
    small = {"training.batch_size": 2, "data.budget": 4, "training.steps": 12}

    def losses(recorded: bool) -> list[Losses]:
        config = preset("toy", {**small, **tiny_toy})
        make_deterministic(0, 1, CPU)
        experiment = open_experiment(config, CPU)
        experiment.method.train()
        take_step = TrainingStep(experiment, config.training, nullcontext(), CPU)
        if recorded:
            take_step.update = OnTheCPU(take_step.update)
        found = [
            copy.deepcopy(take_step(finish(experiment.batches[step]), step)) for step in range(8)
        ]
        if recorded:
            lengths = {
                tuple(part["language"].mask.shape for part in experiment.batches[step].values())
                for step in range(1, 8)
            }
            assert len(take_step.update.recordings) == len(lengths)
        return found

    assert losses(True) == losses(False)


def test_inputs_of_another_shape_are_recorded_anew() -> None:
    computed = []

    def compute(batch: Batch, step: int) -> Losses:
        computed.append(batch)
        return {"loss": sum(tensor.double().sum() for _, tensor in named_tensors(batch))}

    replay, batch = OnTheCPU(compute), make_batch(*METHODS["semidavil"].streams)
    lengths = [6, 6, 5, 6, 5]
    for step, tokens in enumerate(lengths):
        given = of_length(batch, tokens)
        given["source"]["image"] = torch.full_like(given["source"]["image"], step)
        expected = compute(given, step)["loss"]
        assert replay(given, step)["loss"] == expected
        assert (computed[-1] is given) == (step == 0)  # the first is computed as it comes
    assert len(replay.recordings) == 2


def test_what_cannot_be_recorded_is_computed_and_said_once() -> None:
    replay = Unable(lambda batch, step: {"loss": torch.tensor(float(step))})
    batch = make_batch("source")
    assert replay(batch, 0)["loss"] == 0
    with pytest.warns(UserWarning, match=r"capturing\): its kernels .* runtime.cuda_graphs=false"):
        assert replay(batch, 1)["loss"] == 1
    assert replay(batch, 2)["loss"] == 2  # a second warning would be an error


def test_so_many_shapes_are_recorded_and_the_others_computed() -> None:
    replay = OnTheCPU(lambda batch, step: {"loss": batch["source"]["image"].sum()})
    for step in range(MOST + 3):
        images = torch.ones(1, 3, 1, step + 1)
        assert replay({"source": {"image": images}}, step)["loss"] == images.sum()
    assert len(replay.recordings) == MOST


@pytest.mark.parametrize("name", STREET)
def test_a_replayed_method_does_the_same_each_step(name: str) -> None:
    method = make_method(name)
    assert method.replayable() == (name in REPLAYED)
    if method.replayable():
        batch = make_batch(*METHODS[name].streams)
        first, later = (method.losses(batch, step) for step in (0, 7))
        assert all(torch.equal(value, later[name]) for name, value in first.items())


def test_what_reads_the_lengths_of_captions_is_not_replayed() -> None:
    method = make_method("semidavil")
    method.student = make_segmenter(fusion="vlga")
    assert not method.replayable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to record on")
def test_a_gpu_records_beside_processes_that_load_and_gives_the_same_numbers(
    tiny_toy: dict[str, str], recwarn: pytest.WarningsRecorder
) -> None:
    def trained(recorded: bool) -> tuple[list[float], dict[str, float]]:
        changes = {
            "training.steps": 20,
            "training.batch_size": 2,
            "data.budget": 4,
            "runtime.device": "cuda",
            "runtime.num_workers": 2,
            "runtime.cuda_graphs": recorded,
            "runtime.eval_every": 7,
        }
        heard: list[Report] = []
        result = train(preset("toy", {**changes, **tiny_toy}), heard.append)
        losses = [one.metrics["train/loss"] for one in heard if "train/loss" in one.metrics]
        return losses, result.metrics

    assert trained(True) == trained(False)
    assert not [one for one in recwarn if "CUDA graph" in str(one.message)]
