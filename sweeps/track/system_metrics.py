"""What a machine does while a run trains on its GPU: MLflow's system metrics, sent as the run's others are.

MLflow's own thread for them (`mlflow.enable_system_metrics_logging`) talks to the store by itself: where that
is away, a run could not end before MLflow gives up. Here they are samples, taken when a run has metrics, and
what the store misses is delivered later. They need psutil, and nvidia-ml-py for the GPU's.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

PREFIX = "system/"  # by which MLflow's page finds them
MONITORS = (
    "cpu_monitor.CPUMonitor",
    "disk_monitor.DiskMonitor",
    "network_monitor.NetworkMonitor",
    "gpu_monitor.GPUMonitor",
)


class SystemMetrics:
    """Samples of processors, memory, disk, network and GPUs; of those that this machine can measure."""

    def __init__(self) -> None:
        self.monitors = [monitor for name in MONITORS if (monitor := _open(name)) is not None]

    def read(self) -> dict[str, float]:
        """A sample of each, by MLflow's names."""
        values: dict[str, float] = {}
        for monitor in self.monitors:
            found = _read(monitor)
            values |= {f"{PREFIX}{name}": float(value) for name, value in found.items()}
        return values


def _open(name: str) -> Any:
    module, _, monitor = name.partition(".")
    try:
        make: Callable[[], Any] = getattr(
            import_module(f"mlflow.system_metrics.metrics.{module}"), monitor
        )
        return make()
    except Exception:  # a library is missing, or has no device: each has errors of its own
        return None


def _read(monitor: Any) -> dict[str, float]:
    try:
        monitor.collect_metrics()
        found: dict[str, float] = monitor.aggregate_metrics()
        monitor.clear_metrics()
    except Exception:  # no training ends because a driver did not answer
        return {}
    return found
