"""What each trial gets of a machine or cluster, and how many run at a time."""

import socket
from dataclasses import dataclass

from semidavil.config import ConfigError
from semidavil.machine import available_cpus, count_gpus
from sweeps.run.connection import ClusterError, Node, find_nodes, trials_per_gpu
from sweeps.run.events import Task


@dataclass(frozen=True)
class Resources:
    """What each trial gets, and how many run at a time."""

    concurrency: int
    cpus: float  # of a trial
    gpus: float  # of a trial; half a GPU is 0.5
    address: str | None = None  # of a running Ray cluster; None starts a local one
    note: str = ""  # what was asked for and is not there, for people

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    # What all trials take of one machine.

    @property
    def all_cpus(self) -> int:
        return max(1, round(self.concurrency * self.cpus))

    @property
    def all_gpus(self) -> int:
        if 0 < self.gpus < 1:
            return -(-self.concurrency // trials_per_gpu(self.gpus))
        return self.concurrency * int(self.gpus)

    def device(self, configured: str) -> str:
        """`runtime.device` of each trial.

        Nothing is left to `auto`: a trial that was promised a GPU and sees none must not train on the CPU,
        which takes weeks, and one that has none must not take the first GPU from the others.
        """
        return ("cuda" if self.gpus else "cpu") if configured == "auto" else configured

    def packed(self) -> bool:
        """Trials share a GPU, or, without one, a machine: an exclusive one has more memory."""
        return 0 < self.gpus < 1 or (not self.gpus and self.concurrency > 1 and not self.address)

    def of(self, task: Task) -> tuple[float, float]:
        """CPUs and GPUs of a task: more of them if it is exclusive."""
        if not (task.exclusive and self.packed()):
            return self.cpus, self.gpus
        return (self.cpus, 1.0) if self.gpus else (self.cpus * self.concurrency, 0.0)


def choose_resources(
    device: str,
    concurrency: int | None,
    cpus: float | None,
    gpus: float | None,
    address: str | None = None,
    world_size: int = 1,
) -> Resources:
    """Fills in what was not asked for: a GPU each where there are some, else a CPU core each.

    Args:
        device: `runtime.device`.
        concurrency, cpus, gpus: as asked for; there are never more trials at a time than room for them.
        world_size: processes of one trial, for each of which it gets as much; on one machine.

    Raises:
        ConfigError: what was asked for contradicts itself.
        ClusterError: no machine has room for a single trial, or no cluster answers at `address`.
    """
    if world_size > 1 and gpus and gpus != world_size:
        raise ConfigError(
            f"--gpus-per-trial {gpus:g} with runtime.world_size={world_size}: each process takes one "
            "GPU; leave one of the two out"
        )
    if gpus == 0 and device.startswith("cuda"):
        raise ConfigError(
            f"--gpus-per-trial 0 trains on the CPU and runtime.device={device} on a GPU: leave one of "
            "the two out"
        )
    nodes = find_nodes(address) if address else [_this_machine()]
    have = "; ".join(f"{node.host} has {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in nodes)
    if gpus is None:
        for_gpus = device.startswith(("auto", "cuda"))
        gpus = float(world_size if for_gpus and any(node.gpus for node in nodes) else 0)
    if device.startswith("cuda") and not gpus:
        raise ClusterError(f"no machine has a GPU for runtime.device={device}: {have}")
    slots = [node.slots(cpus or (0 if gpus else world_size), gpus) for node in nodes]
    room = sum(slots)
    if not room:
        raise ClusterError(
            f"no machine has the {cpus or world_size:g} CPUs and {gpus:g} GPUs that each trial takes "
            f"(--cpus-per-trial, --gpus-per-trial): {have}"
        )
    note = ""
    if concurrency and concurrency > room:
        note = f"{room} runs at a time instead of {concurrency} (--concurrency): {have}"
    concurrency = min(concurrency or room, room)
    if cpus is None:
        both = zip(nodes, slots, strict=True)
        shares = [node.cpus // min(slot, concurrency) for node, slot in both if slot]
        cpus = max(world_size, int(min(shares))) if gpus else world_size
    return Resources(concurrency, cpus, gpus, address, note)


def _this_machine() -> Node:
    return Node(socket.gethostname(), available_cpus(), count_gpus())
