"""Names come from the command line and from other people's stores: none may become code in a page."""

import itertools
from pathlib import Path

import pytest
from made_up_runs import Writer, settings

from analysis.make_figures import make_all
from analysis.runs import OVERVIEW, load_runs
from analysis.upload import upload

HOSTILE = "<img src=x onerror=alert(1)>|`[x](javascript:alert(1))"


@pytest.mark.slow
def test_no_name_becomes_code_in_report_or_table(store: Writer, tmp_path: Path) -> None:
    for seed, name in ((0, "positions"), (1, "positions"), (0, HOSTILE), (1, HOSTILE)):
        params = settings("gta5-cityscapes", 100, seed, model__captions=name)
        tags = {"semidavil.device": HOSTILE, "semidavil.commit": HOSTILE}
        store.run("captions", params, {"miou": 30.0 + seed}, tags=tags)
    for seed, name in itertools.product((0, 1), ("ce", HOSTILE)):
        params = settings("gta5-cityscapes", 100, seed, loss__name=name)
        store.run("losses", params, {"miou": 30.0 + seed})
    made = make_all(load_runs(store.uri), (), tmp_path / "figures", ("pdf", "png"))
    assert "captions" in made.figures
    page = (tmp_path / "figures" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page  # it is there, as text
    table = (tmp_path / "figures" / "losses_table.md").read_text()
    assert "<img" not in table
    assert "&lt;img src=x" in table


def test_figures_are_kept_with_the_run_that_stands_for_their_grid(
    store: Writer, tmp_path: Path
) -> None:
    store.run("attention", settings("gta5-cityscapes", 100, 0), {"miou": 30.0})
    overview = store.client.create_run(store.experiments["attention"], tags={OVERVIEW: "attention"})
    tracked = load_runs(store.uri)
    for content in (b"first", b"second"):
        files = {"attention": {"attention.png": content}, "losses": {"losses.png": b"-"}}
        assert upload(tracked, files) == ["attention"]
    kept = store.client.list_artifacts(overview.info.run_id, "figures")
    assert [file.path for file in kept] == ["figures/attention.png"]
    found = store.client.download_artifacts(overview.info.run_id, kept[0].path, str(tmp_path))
    assert Path(found).read_bytes() == b"second"
