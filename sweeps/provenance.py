"""Where a run comes from: code, packages, machine, process."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "mlflow", "ray", "numpy")


@cache
def code_tags(root: Path) -> dict[str, str]:
    """Commit, uncommitted changes, Python and package versions, by tag name without prefix."""
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    tags = {
        "commit": commit or "unknown",
        "dirty": "unknown" if changed is None else str(bool(changed)).lower(),
        "python": platform.python_version(),
    }
    return tags | {f"version.{name}": found for name, found in package_versions().items()}


def package_versions() -> dict[str, str]:
    """The versions of `PACKAGES` here; "none" where one is missing."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _git(root: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def owner_tags() -> dict[str, str]:
    """This process, told apart from a later one that gets the same number."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "pid_started": process_start(pid)}


def owner_is_dead(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of `owner_tags` has ended; None when it is on another machine."""
    if tags.get("host") != socket.gethostname():
        return None
    pid = tags.get("pid", "")
    return not pid.isdigit() or process_start(int(pid)) != tags.get("pid_started")


def process_start(pid: int) -> str:
    """When a process of this machine started, in the system's own words; empty if it has ended."""
    if sys.platform == "linux":
        try:
            # The name, in brackets, may hold spaces; the state follows it, the start is 20th.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
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
