"""Runs that need what is not here: foreseen without loading it, left out by name, and no others with them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from harbour import DESCRIPTION, picture, save, write_harbour
from tracked_runs import finished, tracked

from semidavil.config import Config, preset
from semidavil.data import hub
from semidavil.data.own import own_benchmark
from sweeps import request
from sweeps.cli import main
from sweeps.plan.cells import State, make_plan
from sweeps.plan.encoders import TIMM_FILES, VLM_FILES
from sweeps.plan.grids import GRIDS
from sweeps.plan.needs import Lack, lacking, left_out
from sweeps.plan.spec import Job
from sweeps.run.sweep import SweepResult

BLIP2 = "Salesforce/blip2-opt-2.7b"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a machine that is offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_unreachable", [])
    return folder


def keep(cache: Path, repository: str, *names: str) -> None:
    """The files, as a download of them leaves the cache."""
    folder, commit = cache / f"models--{repository.replace('/', '--')}", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for name in names:
        (folder / "snapshots" / commit / name).write_text("{}")


def small(**changes: str) -> Config:
    return preset("small", {name.replace("__", "."): value for name, value in changes.items()})


def whats(config: Config) -> list[str]:
    return [lack.what for lack in lacking([config]).get(config.key(), ())]


CAPTIONS = "blip2:Salesforce/blip2-opt-2.7b"
NEEDS: list[tuple[dict[str, str], list[str], tuple[str, ...]]] = [
    ({"model__captions": CAPTIONS}, [f"the captioner {BLIP2}"], (BLIP2, "config.json", "model.safetensors")),
    (
        {"model__captions": f"shuffled:{CAPTIONS}"},
        [f"the captioner {BLIP2}"],
        (BLIP2, "config.json", "pytorch_model.bin"),
    ),
    ({"model__captions": CAPTIONS, "model__fusion": "none"}, [], ()),  # who reads no caption needs none
    ({"model__captions": "positions"}, [], ()),
    (
        {"model__vlm": "ViT-B-16", "model__weights": "openai"},
        ["the weights openai of ViT-B-16"],
        ("timm/vit_base_patch16_clip_224.openai", VLM_FILES[1]),
    ),
    (
        {"model__encoder": "timm:convnext_base"},
        ["the weights of timm:convnext_base"],
        ("timm/convnext_base.fb_in22k_ft_in1k", TIMM_FILES[0]),
    ),
    ({"model__encoder": "timm:convnext_base", "model__vision_init": "random"}, [], ()),
    (
        {"data__selection": "depth", "data__depth": "hf:a/depth"},
        ["the depth estimator a/depth"],
        ("a/depth", "config.json", "model.safetensors"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected", "files"), NEEDS)
def test_models_that_are_not_in_the_cache_are_named(
    settings: dict[str, str], expected: list[str], files: tuple[str, ...], cache: Path
) -> None:
    config = small(**settings)
    assert whats(config) == expected
    if files:
        keep(cache, *files)
        assert whats(config) == []


def test_a_model_without_weights_is_not_here_and_a_folder_is_left_to_who_opens_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache, BLIP2, "config.json")
    assert whats(small(model__captions=CAPTIONS)) == [f"the captioner {BLIP2}"]
    assert whats(small(model__captions=f"hf:{tmp_path}")) == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "blip").mkdir(parents=True)
    assert whats(small(model__captions="hf:mine/blip")) == []


def test_weights_that_are_a_path_have_to_be_here(tmp_path: Path) -> None:
    here, away = tmp_path / "here.pt", tmp_path / "away.pt"
    here.touch()
    vlm, encoder = {"model__vlm": "ViT-L-14"}, {"model__encoder": "timm:vit_large_patch16_224"}
    assert whats(small(**vlm, model__weights=str(here))) == []
    assert whats(small(**vlm, model__weights=str(away))) == [str(away)]
    assert whats(small(model__vlm=f"local-dir:{tmp_path}", model__weights="bundled")) == []
    assert whats(small(model__vlm=f"local-dir:{away}", model__weights="bundled")) != []
    assert whats(small(**encoder, model__encoder_weights=str(tmp_path))) == []
    lost = small(**encoder, model__encoder_weights=str(away))
    assert lacking([lost])[lost.key()][0].reason.startswith(f"model.encoder_weights={away} is not")
    assert whats(lost.replace({"model.vision_init": "random"})) == []  # whose weights nobody reads
    assert whats(lost.replace({"model.encoder": ""})) == []


class Hub:
    """Answers as the real one does, and counts the questions."""

    def __init__(self, answer: object) -> None:
        self.answer, self.asked = answer, list[str]()

    def __call__(self) -> "Hub":
        return self

    def model_info(self, repository: str, timeout: float) -> SimpleNamespace:
        self.asked.append(repository)
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(gated=self.answer == "gated")

    def auth_check(self, repository: str) -> None:
        from huggingface_hub.errors import GatedRepoError

        raise GatedRepoError.__new__(GatedRepoError)


@pytest.mark.parametrize(
    ("answer", "reason", "questions"),
    [
        ("open", "", 2),
        ("gated", "accept its terms at https://huggingface.co/Salesforce", 2),
        (OSError("no route\nto host"), "the hub does not answer: no route", 1),
    ],
)
def test_what_can_be_downloaded_is_not_left_out(
    answer: object, reason: str, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Hub(answer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", asked)
    names = (CAPTIONS, f"shuffled:{CAPTIONS}", "blip:Salesforce/blip-image-captioning-base")
    cells = [small(model__captions=name) for name in names]
    found = lacking(cells)
    assert len(found) == (3 if reason else 0)
    assert all(lacks[0].reason.startswith(reason) for lacks in found.values())
    assert len(asked.asked) == questions  # once for each model, and not again where the hub is away


def harbour_config(root: Path, **changes: object) -> Config:
    return preset("toy", {**own_benchmark(str(root)), "data.budget": 2, **changes})


def test_disparities_and_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    write_harbour(tmp_path / "h")
    save(tmp_path / "h/more/100.jpg", picture(0)[0])
    tree = {
        **yaml.safe_load(DESCRIPTION),
        "disparity": "disparity/**/{stem}.png",
        "unlabelled": "more",
    }
    (tmp_path / "h/dataset.yaml").write_text(yaml.safe_dump(tree))
    depth = harbour_config(tmp_path / "h", **{"data.selection": "depth"})
    oracle = harbour_config(tmp_path / "h", **{"model.captions": "oracle"})
    plain = harbour_config(tmp_path / "h")
    found = lacking([depth, oracle, plain])
    assert found.keys() == {depth.key(), oracle.key()}
    assert "disparity/seq0/000.png of" in found[depth.key()][0].reason
    assert "oracle describes labels, and 1 pictures of harbour" in found[oracle.key()][0].reason


# Plans, and the commands

GRID = GRIDS["captions"]
CELLS = GRID.cells(preset("small"), benchmarks=["gta5-cityscapes"], budgets=[100])
PLACE = Lack("the captioner x", "HF_HUB_OFFLINE is set", "x")


def plan_with(lacks: dict[str, tuple[Lack, ...]], *runs: object, **more: bool) -> object:
    return make_plan("captions", GRID.around(preset("small")), CELLS, runs, lacking=lacks, **more)


def test_a_run_that_cannot_run_waits_for_nothing_and_one_that_is_done_is_done() -> None:
    blip, blip2 = CELLS[-2:]
    lacks = {blip.key(): (PLACE,), blip2.key(): (PLACE,)}
    plan = plan_with(lacks, finished(blip, 30.0))
    assert plan.counts() == {State.TODO: 6, State.LACKING: 1, State.DONE: 1}
    assert len(plan.waiting) == 6
    assert [cell.config for cell in plan.left_out] == [blip2]
    diverged = tracked(blip2.key(), "FAILED", tags={"retry": "false"})
    assert plan_with(lacks, diverged).cells[-1].state is State.DIVERGED
    again = plan_with(lacks, diverged, retry_diverged=True)
    assert blip2 in [cell.config for cell in again.left_out]
    assert blip2 not in [cell.config for cell in again.waiting]


def test_one_line_says_which_and_what_to_do() -> None:
    cells = [
        (f"run {n}", (PLACE, Lack("the weights y", "HF_HUB_OFFLINE is set", "y"))) for n in range(6)
    ]
    (line,) = left_out(cells)
    assert line.startswith(
        "6 runs (run 0, run 1, run 2, run 3 and 2 more): for want of the captioner x and the weights y, "
        "which are not here and cannot be downloaded (HF_HUB_OFFLINE is set). On a machine with network "
        "access: `hf download x`, `hf download y`;"
    )
    assert left_out([("run 0", (Lack("disparities", "they are not there"),))]) == [
        "1 run (run 0): they are not there"
    ]


@pytest.fixture
def command(
    tmp_path: Path,
    few_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    for name in ("SEMIDAVIL_STORAGE", "SEMIDAVIL_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    monkeypatch.setattr(request, "ROOT", tmp_path)

    def run(*words: str) -> tuple[int, str]:
        code = main(["run", "--data-root", str(few_images), "--budgets", "2", *words])
        out, error = capsys.readouterr()
        return code, out + error

    return run


def test_list_names_what_cannot_run_here(
    command: Callable[..., tuple[int, str]], cache: Path
) -> None:
    code, text = command("--grid", "captions", "--list")
    assert code == 1
    assert "8 runs: 2 cannot run here, 6 to train" in text
    assert "without the captioner Salesforce/blip2-opt-2.7b" in " ".join(text.split())
    assert (
        "left out: 2 runs (gta5-cityscapes/blip:Salesforce/blip-image-captioning-base/2/s0, "
        in text
    )
    keep(cache, BLIP2, "config.json", "model.safetensors")
    code, text = command("--grid", "captions", "--list")
    assert "8 runs: 1 cannot run here, 7 to train" in text
    assert "blip2:Salesforce" not in text.partition("left out")[2]
    code, text = command("--grid", "captions", "--only", "captions=positions,none", "--list")
    assert (code, "left out" in text) == (0, False)
    code, text = command("--grid", "search", "--set", "model.captions=blip:a/b", "--list")
    assert code == 1
    assert "left out: 1 run (the search of gta5-cityscapes): for want of the captioner" in text


def test_a_sweep_says_at_its_end_what_it_has_left_out(
    command: Callable[..., tuple[int, str]],
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Done:
        """All that can run is done."""

        def __init__(self, *_: object) -> None:
            pass

        def run_jobs(self, jobs: list[Job]) -> SweepResult:
            (job,) = jobs
            runs = [finished(config) for config in job.configs[:6]]
            plan = make_plan(job.name, job.grid, job.configs, runs, lacking=job.lacking)
            return SweepResult(plans={job.name: plan})

    (tmp_path / "store").mkdir()
    shutil.copyfile(empty_store, tmp_path / "store" / "mlflow.db")
    monkeypatch.setattr("sweeps.run.sweep.Sweep", Done)
    code, text = command("--grid", "captions")
    assert code == 1
    assert "8 runs: 6 done, 2 cannot run here\n" in text
    assert text.count("left out: 2 runs (") == 1
    assert text.index("left out") > text.index("2 cannot run here\n")
