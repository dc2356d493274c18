"""Why a worker died: it matters whether memory was short, since a cell that runs by itself has more."""

from pathlib import Path

from sweeps.run.events import Lost
from sweeps.track.credentials import redact

# Ray's words for what its memory monitor has killed. It names the kernel's "OOM killer" for any death.
OUT_OF_MEMORY = ("running low on memory", "NODE_OUT_OF_MEMORY")
# Where the kernel counts the processes that it has killed for want of memory: all, and a container's.
KILL_COUNTERS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))


def cause_of_death(error: str, killed: bool) -> Lost:
    """What became of a worker.

    Args:
        error: Ray's text.
        killed: the kernel has killed a process of this machine for want of memory meanwhile.
    """
    if killed or any(words in error for words in OUT_OF_MEMORY):
        return Lost("its worker process was killed: the machine was out of memory", True)
    if "node has died" in error:
        return Lost("its worker process died with its machine", False)
    if not error or "actor died" in error:
        return Lost("its worker process died", False)
    return Lost(f"its worker failed: {redact(error.strip()).splitlines()[-1]}", False)


def kernel_kills() -> int:
    """How many processes the kernel of this machine has killed for want of memory."""
    kills = 0
    for path in KILL_COUNTERS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        kills += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return kills
