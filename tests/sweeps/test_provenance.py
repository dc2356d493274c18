"""What is recorded of the code that makes a run, and that it brings this code back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import raising

from semidavil.config import preset
from sweeps.claims import Claims
from sweeps.provenance import changes_file, code_changes, code_tags
from sweeps.rerun import code_command
from sweeps.server import StoreAway
from sweeps.tracking import Store, TrackedRun

CONFIG = preset("toy")
BINARY = bytes(range(256))


def git(root: Path, *command: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    run = subprocess.run(
        ["git", "-C", str(root), *who, *command], check=True, capture_output=True, text=True
    )
    return run.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed state."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / ".gitignore").write_text("ignored.py\n")
    (root / "kept.py").write_text("x = 1\n")
    (root / "gone.py").write_text("x = 1\n")
    (root / "weights.bin").write_bytes(BINARY)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "all")
    return root


def change(root: Path) -> dict[str, bytes]:
    """Changes it in all ways; returns the Python code and weights that there are then."""
    (root / "kept.py").write_bytes("x = 'ä'\n".encode("latin-1"))
    (root / "gone.py").unlink()
    (root / "weights.bin").write_bytes(BINARY[::-1])
    (root / "new module.py").write_text("y = 2\n")
    (root / "staged.py").write_text("z = 3\n")
    git(root, "add", "staged.py")
    (root / "ignored.py").write_text("never\n")
    (root / "notes.txt").write_text("no code\n")
    return state(root)


def state(root: Path) -> dict[str, bytes]:
    files = [*root.glob("*.py"), *root.glob("*.bin")]
    return {path.name: path.read_bytes() for path in files if path.name != "ignored.py"}


@pytest.mark.parametrize(
    "settings", [{}, {"diff.noprefix": "true", "color.ui": "always", "diff.external": "false"}]
)
def test_changes_of_the_code_are_recorded_whole_and_the_users_index_stays(
    settings: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    for name, value in settings.items():
        git(checkout, "config", name, value)
    changed, seen = change(checkout), git(checkout, "status", "--porcelain")
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


def test_code_as_committed_has_no_changes_and_code_without_git_has_none_that_are_known(
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


def claimed(store: Store, previous: TrackedRun | None = None) -> str:
    experiment = store.experiment_id("attention")
    run_id = Claims(store).claim(experiment, "cell", CONFIG, {"commit": "c0ffee"}, previous)
    assert run_id is not None
    return run_id


def test_each_attempt_at_a_run_has_its_changes_among_the_artifacts(store: Store) -> None:
    store.attachments = {"code/first.diff": BINARY}
    run_id = claimed(store)
    store.close(run_id, "KILLED", "stopped")
    (stopped,) = store.runs()
    store.attachments = {"code/second.diff": b""}
    assert claimed(store, stopped) == run_id
    kept = {item.path for item in store.client.list_artifacts(run_id, "code")}
    assert kept == {"code/first.diff", "code/second.diff"}
    path = Path(store.client.download_artifacts(run_id, "code/first.diff"))
    assert path.read_bytes() == BINARY


def test_a_claim_whose_changes_could_not_be_kept_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, experiment = Claims(store), store.experiment_id("attention")
    with monkeypatch.context() as outage:
        outage.setattr(store, "attach", raising(lambda: StoreAway("away")))
        with pytest.raises(StoreAway):
            claims.claim(experiment, "cell", CONFIG, {})
    run_id = claims.claim(experiment, "cell", CONFIG, {})
    assert [run.run_id for run in store.runs()] == [run_id]


@pytest.mark.slow
def test_the_command_that_is_told_brings_back_the_code_of_a_run(
    checkout: Path, store: Store
) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    changed = change(checkout)
    changes = code_changes(checkout)
    assert changes is not None
    file = changes_file(changes)
    store.attachments = {file: changes}
    run_id = claimed(store)
    store.client.set_tag(run_id, "semidavil.commit", commit)
    store.client.set_tag(run_id, "semidavil.changes", file)
    (run,) = store.runs()
    assert code_command(run, {"commit": commit, "changes": file}) == ""

    (checkout / "kept.py").write_text("later\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "later")
    (checkout / "kept.py").write_text("later still\n")
    command = code_command(run, {"commit": "another", "changes": "none"})
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": store.uri,
        "GIT_COMMITTER_NAME": "nobody",
        "GIT_COMMITTER_EMAIL": "nobody@example.org",
        "GIT_AUTHOR_NAME": "nobody",
        "GIT_AUTHOR_EMAIL": "nobody@example.org",
    }
    subprocess.run(["bash", "-c", command], cwd=checkout, env=os.environ | environment, check=True)
    assert state(checkout) == changed
