"""What is recorded of the code that makes a run, and that it brings this code back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import raising

from semidavil.config import preset
from sweeps.show.rerun import code_command
from sweeps.track import provenance
from sweeps.track.lease import Claimed, Leases
from sweeps.track.provenance import changes_file, code_changes, code_tags
from sweeps.track.retry import StoreAway
from sweeps.track.store import Store

CONFIG = preset("toy")
BINARY = bytes(range(256))
LINES = 8 * "pass\n"
# Nobody's settings of git, and not the repository that these tests may be run for, by a hook of git.
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_NAME": "nobody" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "nobody@example.org" for who in ("AUTHOR", "COMMITTER")},
}


def git(root: Path, *command: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(root), *command], check=True, capture_output=True, text=True, env=PLAIN
    )
    return run.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed state."""
    root = tmp_path / "a checkout"
    code = root / "sweeps"
    code.mkdir(parents=True)
    git(root, "init", "--quiet")
    (root / ".gitignore").write_text("ignored.py\n")
    (code / "kept.py").write_text(f"{LINES}x = 1\n{LINES}")
    (code / "gone.py").write_text("x = 1\n")
    (code / "weights.bin").write_bytes(BINARY)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def change(root: Path) -> dict[str, bytes]:
    """Changes it in all ways; returns the code that there is then."""
    code = root / "sweeps"
    (code / "kept.py").write_bytes(f"{LINES}x = 'ä'\n{LINES}".encode("latin-1"))
    (code / "gone.py").unlink()
    (code / "weights.bin").write_bytes(BINARY[::-1])
    (code / "new [module].py").write_text("y = 2\n")
    (code / "staged.py").write_text("z = 3\n")
    git(root, "add", "sweeps/staged.py")
    (code / "ignored.py").write_text("never\n")
    (root / "venv").mkdir()
    (root / "venv" / "library.py").write_text("nobody's change\n")
    return state(root)


def state(root: Path) -> dict[str, bytes]:
    files = (root / "sweeps").iterdir()
    return {path.name: path.read_bytes() for path in files if path.name != "ignored.py"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"diff.noprefix": "true", "color.ui": "always", "diff.external": "false"},
        {"diff.context": "0"},
    ],
)
def test_changes_of_the_code_are_recorded_whole_and_the_users_index_stays(
    settings: dict[str, str], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        git(checkout, "config", name, value)
    changed, seen = change(checkout), git(checkout, "status", "--porcelain")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another repository
    changes = code_changes(checkout)
    assert changes is not None
    assert git(checkout, "status", "--porcelain") == seen
    tags = code_tags(checkout)
    assert tags["commit"] == git(checkout, "rev-parse", "HEAD").strip()
    assert (tags["dirty"], tags["changes"]) == ("true", changes_file(changes))

    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(checkout), str(other))
    (tmp_path / "changes").write_bytes(changes)
    git(other, "apply", str(tmp_path / "changes"))
    assert state(other) == changed


def test_a_change_right_after_the_commit_is_seen_though_time_and_size_stay(checkout: Path) -> None:
    git(checkout, "config", "core.trustctime", "false")
    file, index = checkout / "sweeps" / "gone.py", checkout / ".git" / "index"
    then = (10**9, 10**9)  # as on a file system with coarse times, a while ago
    os.utime(file, then)
    git(checkout, "update-index", "--refresh")
    file.write_text("x = 2\n")
    for path in (file, index):
        os.utime(path, then)
    assert "+x = 2" in (code_changes(checkout) or b"").decode()


def test_a_linked_worktree_has_changes_of_its_own(checkout: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(checkout, "worktree", "add", "--quiet", str(linked))
    changed = change(linked)
    assert code_changes(checkout) == b""
    (tmp_path / "changes").write_bytes(code_changes(linked) or b"")
    git(checkout, "apply", str(tmp_path / "changes"))
    assert state(checkout) == changed


def test_code_as_committed_has_no_changes_and_code_without_git_none_that_are_known(
    checkout: Path, tmp_path: Path
) -> None:
    assert code_changes(checkout) == b""
    tags = code_tags(checkout)
    assert (tags["dirty"], tags["changes"]) == ("false", "none")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert code_changes(elsewhere) is None
    tags = code_tags(elsewhere)
    assert (tags["commit"], tags["dirty"], tags["changes"]) == 3 * ("unknown",)


def test_what_is_too_large_for_changes_of_code_is_not_kept(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(checkout)
    monkeypatch.setattr(provenance, "CHANGES_BYTES", 100)
    assert code_changes(checkout) is None


def claimed(store: Store, leases: Leases | None = None) -> str:
    leases = leases or Leases(store)
    found = leases.claim(store.experiment_id("attention"), "cell", CONFIG, {"commit": "c0ffee"})
    assert isinstance(found, Claimed)
    return found.run_id


def test_each_attempt_at_a_run_has_its_changes_among_the_artifacts(store: Store) -> None:
    store.attachments = {"code/first.diff": BINARY}
    run_id = claimed(store)
    store.close(run_id, "KILLED", "stopped")
    store.attachments = {"code/second.diff": b""}
    assert claimed(store) == run_id
    kept = {item.path for item in store.client.list_artifacts(run_id, "code")}
    assert kept == {"code/first.diff", "code/second.diff"}
    path = Path(store.client.download_artifacts(run_id, "code/first.diff"))
    assert path.read_bytes() == BINARY


def test_a_claim_whose_changes_could_not_be_kept_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(store)
    with monkeypatch.context() as outage:
        outage.setattr(store, "attach", raising(lambda: StoreAway("away")))
        with pytest.raises(StoreAway):
            claimed(store, leases)
    run_id = claimed(store, leases)
    assert [run.run_id for run in store.runs()] == [run_id]


def test_a_place_for_artifacts_that_refuses_this_machine_stops_no_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.attachments = {"code/first.diff": BINARY}
    refused = raising(lambda: PermissionError("s3://ann:secret@host: no credentials"))
    monkeypatch.setattr(store.client, "log_artifact", refused)
    claimed(store)
    assert "code/first.diff is not kept with the runs" in caplog.text
    assert "secret" not in caplog.text
    assert store.attachments == {}  # said once


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"commit": "a", "changes": "none"}, ""),
        ({"commit": "unknown", "changes": "unknown"}, ""),
        ({"commit": "b", "changes": "none"}, "git checkout b"),
        ({"commit": "b", "dirty": "false"}, "git checkout b"),  # from before there was `changes`
        ({"commit": "b", "dirty": "true"}, "# its uncommitted changes, if it had any, were not"),
        ({"commit": "a", "changes": "code/x.diff"}, "git apply"),
    ],
)
def test_the_command_that_is_told_is_for_what_is_known(
    tags: dict[str, str], told: str, store: Store
) -> None:
    all_tags = {"key": CONFIG.key(), **tags}
    run = store.run(store.create_run(store.experiment_id("attention"), "cell", CONFIG, all_tags))
    command = code_command(run, {"commit": "a", "changes": "none"})
    assert told in command
    assert bool(command) == bool(told)


@pytest.mark.slow
def test_the_command_that_is_told_brings_back_the_code_of_a_run(
    checkout: Path, store: Store, tmp_path: Path
) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    changed = change(checkout)
    changes = code_changes(checkout)
    assert changes is not None
    file = changes_file(changes)
    store.attachments = {file: changes}
    run_id = claimed(store)
    store.log(run_id, tags={"commit": commit, "changes": file})
    run = store.run(run_id)

    for package in ("semidavil", "analysis"):
        (checkout / package).mkdir()
        (checkout / package / "__init__.py").touch()
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "later")
    (checkout / "sweeps" / "kept.py").write_text("later still\n")
    (checkout / "sweeps" / "another.py").write_text("new\n")
    (checkout / "street.png").write_text("a user's own\n")
    command = code_command(run, {"commit": "another", "changes": "none"})
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    (tmp_path / "a place").mkdir()
    environment = PLAIN | {
        "PATH": path,
        "MLFLOW_TRACKING_URI": store.uri,
        "TMPDIR": str(tmp_path / "a place"),
    }
    subprocess.run(["bash", "-c", command], cwd=checkout, env=environment, check=True)
    (checkout / "street.png").unlink()  # which the command leaves where it is
    assert state(checkout) == changed
