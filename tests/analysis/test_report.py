"""The report: what it says first, what it links, commands that make the same runs, and what errors cost."""

import base64
import hashlib
import html
import inspect
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_runs import Writer, evaluation_of, iou_metrics, settings
from slow_cases import also_slow

from analysis import make_figures
from analysis.figures import FIGURES
from analysis.make_figures import make_all
from analysis.report import published, report
from analysis.reproduce import commands
from analysis.run_pages import run_pages
from analysis.runs import AnalysisError, Tracked, _row, load_runs
from analysis.tables import TABLES
from semidavil.config import preset
from semidavil.plugin_files import read
from semidavil.plugins import use
from sweeps.cli import parser
from sweeps.given import known_grid
from sweeps.plan.grids import GRIDS
from sweeps.plan.narrow import narrowed
from sweeps.request import Options, Request, requested


class Page(HTMLParser):
    """Names and attributes of the elements of a page, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def track(store: Writer, configs: list, grid: str, miou: float = 30.0, name: str = "toy") -> None:  # type: ignore[type-arg]
    for i, config in enumerate(configs):
        tags = {"semidavil.preset": name, "semidavil.results_version": "4"}
        score = miou + 0.01 * i * i
        store.run(
            grid, config.to_params(), {"miou": score, "seconds": 60.0}, tags=tags, key=config.key()
        )


@pytest.mark.parametrize(
    ("grid", "changes", "budgets", "seeds", "only"),
    [
        (
            "attention",
            {"training.steps": "40", "data.crop": "32x48", "runtime.eval_every": "20"},
            (),
            (1,),
            (),
        ),
        ("components", {}, (), (0, 1), ("variant=VL+DLG,nothing,released code",)),
        *also_slow(
            ("loss_controls", {}, (200,), (0,), ()),
            ("attention", {}, (0, 100), (0, 2), ("fusion=dlg,wpct",)),
            ("methods", {"training.lr": "3e-4"}, (), (0,), ()),
            ("methods", {}, (), (0,), ("variant=source_only",)),
            ("baselines", {}, (), (0,), ()),
            ("encoders", {}, (), (3,), ("variant=toy (random)+dlg",)),
            ("sensitivity", {}, (), (0,), ("omega=0.5,0.25", "confidence=0.6")),
            ("captions", {}, (), (0,), ("captions=none,shuffled:positions",)),
        ),
    ],
)
def test_the_command_plans_the_very_runs_that_it_is_shown_beside(
    store: Writer,
    grid: str,
    changes: dict[str, str],
    budgets: tuple[int, ...],
    seeds: tuple[int, ...],
    only: tuple[str, ...],
) -> None:
    """It said `--grid methods` for runs that were made with six more options."""
    base = preset("toy", changes)
    configs = narrowed(GRIDS[grid].cells(base, (), budgets, seeds), only, GRIDS[grid].around(base))
    track(store, configs, grid)
    (command,) = commands(load_runs(store.uri).table, grid)
    (job,) = planned(command).jobs
    assert {c.key() for c in job.configs} == {c.key() for c in configs}


def planned(command: str) -> Request:
    """What a printed command asks for."""
    words = shlex.split(command)
    assert words[:2] == ["python", "sweeps/run.py"]
    options = parser().parse_args(["run", *words[2:]], Options(given=words[2:], from_file={}))
    options.grid = known_grid(options.grid)
    return requested(options)


def test_the_command_of_an_own_grid_has_the_values_that_it_was_made_with(
    store: Writer, tmp_path: Path
) -> None:
    """It named no file, and a variant that there is with several learning rates alone."""
    file = tmp_path / "mine.py"
    file.write_text("GRIDS = {'ladder': [{'model.fusion': 'dlg'}, {'model.fusion': 'vlga'}]}")
    swept = "--set training.steps=40 training.lr=0.001,0.003 data.crop=16x16,32x32"
    with use(read(file)):
        (job,) = planned(f"python sweeps/run.py --grid {file}:ladder {swept}").jobs
        assert len(job.configs) == 8
        for config in job.configs:
            tags, name = {"semidavil.preset": "toy"}, job.grid.name(config)
            store.run("ladder", config.to_params(), {"miou": 30.0}, tags=tags, name=name)
    (command,) = commands(load_runs(store.uri).table, "ladder")
    assert "--grid FILE:ladder" in command
    with use(read(file)):
        (again,) = planned(command.replace("FILE", str(file))).jobs
    assert {c.key() for c in again.configs} == {c.key() for c in job.configs}


def test_two_presets_take_two_commands(store: Writer) -> None:
    for name in ("toy", "toy-long"):
        track(store, GRIDS["losses"].cells(preset(name), (), (100,), (0,)), "losses", name=name)
    first, second = commands(load_runs(store.uri).table, "losses")
    assert {"--preset toy" in first, "--preset toy-long" in first} == {
        True,
        False,
    } or "toy-long" in second


@pytest.fixture(scope="module")
def made(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tracked, Path]:
    """Attentions with a clear leader, a run that diverged, and one that is running."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copyfile(empty_store, folder / empty_store.name)
    store = Writer(folder)
    for fusion, lead in (("dlg", 2.0), ("vlga", 0.0)):
        for seed in range(3):
            cell = settings("gta5-cityscapes", 100, seed, model__fusion=fusion)
            score = 30.0 + lead + seed + 0.1 * seed * seed * lead
            store.run("attention", cell, {"miou": score, "seconds": 7200.0})
    lost = settings("gta5-cityscapes", 200, 0, model__fusion="vlga")
    store.run("attention", lost, {}, status="FAILED", tags={"semidavil.retry": "false"})
    store.run("attention", settings("gta5-cityscapes", 500, 0), {}, status="RUNNING")
    tracked = load_runs(store.uri)
    make_all(tracked, (), folder / "out", ("png",))
    return tracked, folder / "out"


@pytest.mark.slow
def test_the_report_begins_with_what_the_runs_show(made: tuple[Tracked, Path]) -> None:
    _, out = made
    text = (out / "report.html").read_text()
    verdict = "GTA5 → Cityscapes (toy): DLG (SemiDAViL) is best at 100 labels: +2.3 "
    assert (
        0
        < text.index(verdict)
        < text.index('<section id="attention">')
        < text.index("Not shown yet")
    )
    assert "1 diverged, 1 running" in text
    assert "12.0 h on test" in text  # 6 runs of two hours
    assert "published: </span>71.1" in text  # told apart for a screen reader
    page = Page(text)
    images = [a for tag, a in page.found if tag == "img"]
    assert all("alt" in a for a in images)
    links = {a["href"] for tag, a in page.found if tag == "a"}
    beside = {link for link in links if link and not link.startswith("#")}
    assert {"attention_table.tex", "attention.csv", "attention_tests.csv", "runs.html"} <= beside
    assert all((out / link).exists() for link in beside)
    ids = [a["id"] for _, a in page.found if a.get("id")]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_pages_ask_no_other_address_and_run_no_other_script(made: tuple[Tracked, Path]) -> None:
    _, out = made
    for path in (out / "report.html", out / "runs.html", next((out / "runs").glob("*.html"))):
        page = Page(path.read_text())
        assert not [a for tag, a in page.found if tag in ("script", "link", "img") and
                    not str(a.get("src") or a.get("href") or "data:").startswith("data:")]  # fmt: skip
        (policy,) = [a["content"] for _, a in page.found if a.get("http-equiv")]
        assert policy is not None
        assert "'unsafe-inline'; script-src 'sha256-" in policy


def test_every_run_has_a_row_and_a_finished_one_a_page(made: tuple[Tracked, Path]) -> None:
    tracked, out = made
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", (out / "runs.html").read_text())
    assert len(rows) == len(tracked.table) + 2
    assert sum("diverged" in row for row in rows) == 1
    run = tracked.table.iloc[0]
    page = (out / "runs" / f"{run['run_id']}.html").read_text()
    assert f"#/experiments/{run['experiment_id']}/runs/{run['run_id']}" in page
    assert "training.steps" in page  # differs from the paper's
    assert f"--rerun {run['run_id']}\n" in page


def test_a_run_s_page_lists_no_setting_that_its_method_does_not_read(
    store: Writer, tmp_path: Path
) -> None:
    for method in ("semivl", "semidavil"):
        config = preset("toy", {"training.method": method})
        store.run("methods", config.to_params(), {"miou": 30.0}, key=config.key())
    tracked = load_runs(store.uri)
    pages = run_pages(tracked, tmp_path)
    listed = {
        run["method"]: set(
            re.findall(r"<dt>((?:rivals|volumes)\.\w+)", pages[f"{run['run_id']}.html"].decode())
        )
        for run in tracked.rows.values()
    }
    mine = ("semivl_lr", "semivl_backbone_lr_factor", "semivl_head_lr_factor")
    assert listed == {"semidavil": set(), "semivl": {f"rivals.{name}" for name in mine}}


def test_a_run_of_a_plugin_is_run_again_with_it(store: Writer, tmp_path: Path) -> None:
    mine = settings("gta5-cityscapes", 100, 0, model__fusion="mine", plugins='["my own.py@a1b2"]')
    store.run("attention", mine, {"miou": 30.0})
    (page,) = run_pages(load_runs(store.uri), tmp_path).values()
    again, predict = re.findall(r"<pre>(.*)\n(.*)</pre>", html.unescape(page.decode()))[0]
    assert again.endswith(" --plugin 'my own.py'")
    assert predict.endswith(" --out seen --plugin 'my own.py'")


def test_a_published_number_is_compared_once_and_a_toy_one_never(store: Writer) -> None:
    for seed in (0, 1):
        for toy, benchmark in (("true", "gta5-cityscapes"), ("false", "synthia-cityscapes")):
            both = settings(benchmark, 100, seed) | {"data.toy": toy}
            store.run("attention", both, {"miou": 60.0 + seed}, tags={"semidavil.grids": "losses"})
    tracked = load_runs(store.uri)
    tables = {name: TABLES[name](tracked) for name in ("attention", "losses")}
    rows = published(tables)
    assert [(r["benchmark"], r["difference"]) for r in rows] == [
        ("GTA5 → Cityscapes", None), ("SYNTHIA → Cityscapes", pytest.approx(60.5 - 76.9)),
    ]  # fmt: skip


def test_one_broken_figure_costs_no_other(
    store: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store.run("attention", settings("gta5-cityscapes", 100, 0), {"miou": 30.0})
    monkeypatch.setitem(FIGURES, "attention", lambda _: 1 / 0)
    monkeypatch.setattr(make_figures, "NAMES", ["attention", "cost", "methods"])
    store.run("methods", settings("gta5-cityscapes", 100, 0), {"miou": 30.0, "seconds": 1.0})
    made = make_all(load_runs(store.uri), (), tmp_path, ())
    assert made.broken == ["attention"]
    assert "ZeroDivisionError: division by zero (test_report.py:" in made.left_out["attention"]
    assert "attention is left out" in capsys.readouterr().out
    assert {"cost", "methods"} <= set(made.figures)
    assert "please report it" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_run_or_file_that_cannot_be_read_costs_itself_alone(
    store: Writer, tmp_path: Path
) -> None:
    """One odd parameter, or one evaluation that was cut off, ended the command."""
    kept = evaluation_of("gta5-cityscapes", 0.6, 0)
    final = iou_metrics("gta5-cityscapes", kept)
    runs = []
    for method, seed in (("semidavil", 0), ("semivl", 0), ("semivl", 1), ("semidavil", 1)):
        cell = settings("gta5-cityscapes", 100, seed, training__method=method)
        runs.append(store.run("methods", cell, final, evaluation=kept))
    odd = settings("gta5-cityscapes", 100, 5) | {"training.lr": "1e2x"}
    broken = store.run("methods", odd, {"miou": 1.0})
    (path,) = (tmp_path / "mlruns").rglob(f"{runs[0]}/artifacts/evaluation.npz")
    path.write_bytes(path.read_bytes()[:100])
    tracked = load_runs(store.uri)
    assert len(tracked.table) == 4
    drawn = FIGURES["confusion"](tracked)
    assert drawn.numbers["n"].iloc[0] == 2
    assert set(tracked.unreadable) == {f"run {broken}", f"evaluation.npz of run {runs[0]}"}
    page = report(tracked, {"confusion": drawn}, {}, {})["report.html"].decode()
    assert f"evaluation.npz of run {runs[0]} cannot be read" in page


def test_losses_without_a_common_seed_are_no_figure_and_no_crash(store: Writer) -> None:
    """Half-way through a sweep: NaN became an integer."""
    kept = evaluation_of("gta5-cityscapes", 0.6, 0)
    for loss, seed in (("ce", 0), ("dyce", 1)):
        cell = settings("gta5-cityscapes", 500, seed, loss__name=loss)
        store.run("losses", cell, iou_metrics("gta5-cityscapes", kept), evaluation=kept)
    with pytest.raises(AnalysisError, match="both ce and dyce"):
        FIGURES["class_gains"](load_runs(store.uri))


def test_only_what_is_new_is_read_again(store: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        store.run("attention", settings("gta5-cityscapes", 100, seed), {"miou": 30.0})
    begun = store.run(
        "attention", settings("gta5-cityscapes", 100, 3), {"miou": 31.0}, status="RUNNING"
    )
    first = load_runs(store.uri)
    assert (len(first.table), first.open["why"].tolist()) == (3, ["running"])
    again = load_runs(store.uri, before=first)
    assert again.table.equals(first.table)
    store.client.set_terminated(begun, "FINISHED")
    read = []
    row = "analysis.runs._row"
    monkeypatch.setattr(row, lambda run, *rest: read.append(run.info.run_id) or _row(run, *rest))
    third = load_runs(store.uri, before=again)
    assert len(third.table) == 4
    assert third.open.empty
    assert begun in read
    assert len(set(read)) <= 2  # and the one that had ended last
    assert make_figures._changed(again, third) == {"attention"}


def test_drawing_uploads_nothing_unless_asked(attention: Tracked) -> None:
    assert inspect.signature(make_figures.main).parameters["upload"].default is False


@pytest.mark.slow
def test_the_report_in_a_browser(made: tuple[Tracked, Path], tmp_path: Path) -> None:
    """Its one script runs under its policy: a click on a heading sorts, typing filters."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium: apt-get install chromium")
    _, out = made
    page = (out / "runs.html").read_text()
    clicks = (
        "const b=document.querySelectorAll('thead button');b[6].click();b[6].click();"
        "const f=document.querySelector('input');f.value='diverged';f.dispatchEvent(new Event('input'));"
    )
    # A second script of the test's own, which the policy must be told of.
    digest = base64.b64encode(hashlib.sha256(clicks.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    page = page.replace("</body>", f"<script>{clicks}</script></body>")
    (tmp_path / "clicked.html").write_text(page)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
               (tmp_path / "clicked.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert 'aria-sort="descending"' in done.stdout
    assert "1 of 8 rows" in done.stdout
