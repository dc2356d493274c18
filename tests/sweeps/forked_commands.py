"""Commands as processes of their own that need not import MLflow and Ray again: forks of one process.

Importing takes a command three seconds of a processor. So one process, the source, imports all that the
commands need and waits; each command is a fork of it, with a session, an environment, a folder, arguments,
signals and an output of its own, as if it had been started. Between the source and each command stands a
warden, the command's parent, which tells how it ended.
"""

import array
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TextIO

from forked_workers import BEFORE_IMPORTS, ENVIRONMENT, open_nursery

ROOT = Path(__file__).parents[2]
START_SECONDS = 300
# What a sweep imports, of which `sweeps.commands` itself imports nothing before it knows that it must.
IMPORTS = (
    "sweeps.commands", "sweeps.run.sweep", "sweeps.run.cluster",
    "sweeps.run.worker", "sweeps.show.status", "sweeps.show.rerun", "sweeps.track.deliver",
    "sweeps.keep.bucket", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils",
    "mlflow.tracking.client", "mlflow.store.artifact.local_artifact_repo", "ray.tune.search",
    "optuna.storages", "optuna.samplers", "optuna.pruners", "fake_training",
)  # fmt: skip


def hear_signals() -> None:
    """In a process that the tests start: `nohup pytest` or `pytest &` ignores some of them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class ForkedCommand:
    """A `subprocess.Popen` in all that the tests use of one."""

    def __init__(self, warden: socket.socket, stdout: TextIO, arguments: Sequence[str]) -> None:
        self._warden, self.stdout, self.args = warden, stdout, arguments
        warden.settimeout(START_SECONDS)
        self.pid = int(_line(warden))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0.0)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            # With 0 a socket does not block, and raises another error.
            self._warden.settimeout(max(seconds, 1e-4) if seconds is not None else None)
            try:
                self.returncode = int(_line(self._warden))
            except TimeoutError:
                return None
            # It is there, ended, until somebody has asked how; and gone when that is answered.
            self._warden.settimeout(60)
            self._warden.sendall(b"\n")
            assert self._warden.recv(1) == b""
            self._warden.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append(self.stdout.read()), daemon=True)
        reader.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.stdout.close()
        return read[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _line(connection: socket.socket) -> bytes:
    """One answer."""
    found = connection.recv(32)
    assert found.endswith(b"\n"), "the warden has ended"
    return found


class Source:
    """The process of which commands are forks; ends with the one that has started it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._nurseries = TemporaryDirectory(prefix="nurseries-")
        paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), self._nurseries.name],
            env=os.environ
            | BEFORE_IMPORTS
            | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            preexec_fn=hear_signals,
        )
        theirs.close()
        self._connection.settimeout(START_SECONDS)
        assert _line(self._connection) == b"ready\n"

    def start(
        self,
        script: Path,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        constants: Mapping[str, float] | None = None,
    ) -> ForkedCommand:
        """`python SCRIPT ARGUMENTS`; its errors go to its output.

        Args:
            constants: of modules, such as `sweeps.run.sweep:LOOK_SECONDS`, with other values for it.
        """
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # keeps answers apart
        reading, writing = os.pipe()
        request = {
            "script": str(script), "arguments": list(arguments), "folder": str(folder),
            "environment": dict(environment), "constants": dict(constants or {}),
        }  # fmt: skip
        data = json.dumps(request).encode()
        handles = array.array("i", [theirs.fileno(), writing])
        header = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)]
        self._connection.sendmsg([len(data).to_bytes(4, "big")], header)
        self._connection.sendall(data)
        theirs.close()
        os.close(writing)
        return ForkedCommand(ours, os.fdopen(reading), [str(script), *arguments])


# In the source


def main(connection: socket.socket, nurseries: Path) -> None:
    _import_all()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert threads[1:] in ([], ["jemalloc_bg_thd"]), f"a fork would lack a thread of {threads}"
    gc.collect()
    gc.freeze()  # what is imported stays shared
    connection.sendall(b"ready\n")
    while True:
        header, handles, _, _ = socket.recv_fds(connection, 4, 2)
        _reap_wardens()
        if not header:
            return
        data = connection.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)
        if os.fork() == 0:
            connection.close()
            if _watch_over_a_fork(socket.socket(fileno=handles[0]), handles[1]):
                return _begin(nurseries, **json.loads(data))
        for handle in handles:
            os.close(handle)


def _import_all() -> None:
    import ray.actor
    from quick_stores import make_stores_quick

    # Ray seeds its generator of ids when it is used first. Were that here, forks would have the same ids.
    ids = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: ids(os.urandom(ids.size())))
    for name in IMPORTS:
        import_module(name)
    ray.actor.ActorClassID = ids
    make_stores_quick()


def _reap_wardens() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _watch_over_a_fork(client: socket.socket, output: int) -> bool:
    """True in the fork, which has a session and an output of its own; the warden does not return."""
    os.setsid()
    pid = os.fork()
    if pid == 0:
        client.close()
        os.setsid()
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        return True
    for handle in (1, 2, output):
        os.close(handle)
    client.sendall(b"%d\n" % pid)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    try:
        client.sendall(b"%d\n" % code)
        client.recv(1)
    finally:
        os.waitpid(pid, 0)
        os._exit(0)


def _begin(
    nurseries: Path, constants: Mapping[str, float], environment: Mapping[str, str], **what: Any
) -> None:
    # A Ctrl-C waits for the command itself, which knows what to say.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    if sys.platform == "linux":
        sys.executable = open_nursery(nurseries, _become)
    for name, constant in constants.items():
        module, _, attribute = name.partition(":")
        assert hasattr(import_module(module), attribute), name
        setattr(import_module(module), attribute, constant)
    _become(environment=environment | ENVIRONMENT, blocked=[], **what)


def _become(
    script: str,
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    blocked: Sequence[int],
) -> None:
    """`python SCRIPT ARGUMENTS` with these signals blocked."""
    import numpy as np
    from ray._raylet import AuthenticationTokenLoader, Config

    import sweeps

    os.environ.clear()
    os.environ.update(environment)
    for name, value in sweeps.QUIET_ENVIRONMENT.items():  # as importing it does
        os.environ.setdefault(name, value)
    # Ray has read the source's when it was imported.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    os.chdir(folder)
    random.seed()
    np.random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The source's own know a file that can be sought in.
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
