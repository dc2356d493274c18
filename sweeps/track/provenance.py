"""Where a run comes from: code, packages, machine, process."""

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from semidavil import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "mlflow", "ray", "numpy")
CODE = ("semidavil", "sweeps", "analysis")  # where a new file may be part of what runs
CHANGES_BYTES = 5 * 2**20  # larger ones are not kept: they are hardly code
# Whatever the user's settings of git are.
DIFFERENCE = (
    "diff", "-U3", "--binary", "--no-ext-diff", "--no-textconv", "--no-color",
    "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip


@cache
def code_tags(root: Path | None) -> dict[str, str]:
    """Commit, uncommitted changes, Python and package versions, by tag name without prefix."""
    commit, changes = _git(root, "rev-parse", "HEAD"), code_changes(root)
    tags = {
        "commit": commit.decode().strip() if commit else "unknown",
        "dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        "changes": "unknown" if changes is None else changes_file(changes) if changes else "none",
        "python": platform.python_version(),
        "version.semidavil": __version__,
    }
    return tags | {f"version.{name}": found for name, found in package_versions().items()}


@cache
def code_changes(root: Path | None) -> bytes | None:
    """From the commit to the code that runs, for `git apply`.

    That is of all tracked files, and of new Python files of `CODE` that are not ignored. None where git
    does not know, or where it is more than `CHANGES_BYTES`.
    """
    place = _git(root, "rev-parse", "--git-path", "index")
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE)
    if root is None or place is None or new is None:
        return None
    # An index of our own: new files have to be in one, and the user's stays as it is.
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        try:  # with its time, by which git knows what it has to look at again
            shutil.copy2(root / os.fsdecode(place).removesuffix("\n"), index)
        except OSError:
            return None
        names = [name for name in new.split(b"\0") if name.endswith(b".py")]
        add = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
        if names and _git(root, *add, index=index, given=b"\0".join(names)) is None:
            return None
        changes = _git(root, *DIFFERENCE, "HEAD", "--", ".", index=index)
    return None if changes is None or len(changes) > CHANGES_BYTES else changes


def changes_file(changes: bytes) -> str:
    """The name that changes of the code have among a run's artifacts: the same for the same ones."""
    return f"code/{hashlib.sha256(changes).hexdigest()[:12]}.diff"


def package_versions() -> dict[str, str]:
    """The versions of `PACKAGES` here; "none" where one is missing."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _git(
    root: Path | None, *command: str, index: Path | None = None, given: bytes = b""
) -> bytes | None:
    """What git prints; None if it fails, is not there, or there is no checkout."""
    if root is None:
        return None
    # Variables such as GIT_DIR, which git sets for what it runs itself, are of another folder.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command],
            input=given, capture_output=True, env=environment, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def machine() -> dict[str, str]:
    """What tells this machine, or container, from every other: a host name alone may be shared."""
    boot = namespace = ""
    with suppress(OSError):  # where there is no /proc
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "pid_namespace": namespace}


def owner_tags() -> dict[str, str]:
    """This process, told apart from a later one that gets the same number."""
    pid = os.getpid()
    return {**machine(), "pid": str(pid), "pid_started": process_start(pid)}


def owner_is_dead(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of `owner_tags` has ended; None when it is on another machine."""
    # Tags of older runs hold the host alone.
    if "host" not in tags or any(tags.get(n, value) != value for n, value in machine().items()):
        return None
    pid = tags.get("pid", "")
    if not pid.isdigit():
        return True
    started = process_start(int(pid))
    return started != tags.get("pid_started") and not (started == "" and _is_hidden(int(pid)))


def _is_hidden(pid: int) -> bool:
    """Whether the system shows a living process of another user to that user alone."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def process_start(pid: int) -> str:
    """When a process of this machine started, in the system's own words; empty if it has ended."""
    if sys.platform == "linux":
        try:
            # The name, in brackets, may hold spaces; the state follows it, the start is 20th.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)],
        capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return done.stdout.strip()


def device_name() -> str:
    """The GPU that this process sees, else the CPU's model."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
