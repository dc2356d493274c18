"""Starts the processes that share a run on this machine, and listens to them."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

from semidavil.checkpoint import StopTraining
from semidavil.config import Config
from semidavil.distributed import ParallelError
from semidavil.machine import available_cpus
from semidavil.plugin_files import Source
from semidavil.plugins import in_use, use

# (config, report, checkpoint_dir) -> Result: `train`, which stands above this module.
Train = Callable[[Config, Callable[[Any], None], Path | None], Any]
DEATH_SECONDS = 10.0  # for a process to end whose peer reports an error: most end at once
STOP_SECONDS = 120.0  # for the first process to write its checkpoint when the run is stopped


def launch(
    work: Train, config: Config, report: Callable[[Any], None], checkpoint_dir: Path | None
) -> Any:
    """Has `runtime.world_size` new processes of this machine do `work`; the first one's Result.

    As in one process, training waits for each `report`. If that raises `StopTraining`, the first process
    writes the checkpoint, and all of them end. Their warnings go to the standard error of this process.

    Raises:
        ParallelError: a process died; and whatever `train` or `report` raises.
    """
    size = config.runtime.world_size
    threads = max(1, (config.runtime.threads or available_cpus()) // size)
    config = config.replace({"runtime.threads": threads})
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes: dict[Connection, Any] = {}
    try:
        for number in range(size):
            ours, theirs = context.Pipe()
            environment = {
                "RANK": str(number),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is this process's, as torchrun's
            }
            process = context.Process(
                target=_work,
                args=(environment, work, config, in_use(config.plugins), checkpoint_dir, theirs),
            )
            process.start()
            theirs.close()
            pipes[ours] = process
        return _listen(pipes, report)
    finally:
        for pipe, process in pipes.items():
            process.kill()  # those that have ended are past it
            process.join()
            pipe.close()


def _listen(pipes: dict[Connection, Any], report: Callable[[Any], None]) -> Any:
    """Passes on what the processes say until the first one sends its Result."""
    while True:
        for pipe in wait(list(pipes)):
            assert isinstance(pipe, Connection)
            try:
                kind, value = pipe.recv()
            except (EOFError, ConnectionResetError):  # the latter if it died with an answer unread
                process = pipes.pop(pipe)
                process.join()
                if death := _death([process]):
                    raise death from None
                continue
            if kind == "error":
                # Of a process that misses another one, which has died: that comes first.
                others = [process for one, process in pipes.items() if one is not pipe]
                raise _death(_ended(others)) or value
            if kind == "result":
                return value
            _pass_on(value, pipe, report)


def _pass_on(value: Any, pipe: Connection, report: Callable[[Any], None]) -> None:
    """Reports for a process, which waits until it hears whether to go on.

    Raises:
        StopTraining: from `report`, when the process has written its checkpoint.
    """
    try:
        report(value)
    except StopTraining:
        with suppress(ConnectionError, EOFError):  # it has died meanwhile
            pipe.send(False)
            if pipe.poll(STOP_SECONDS):
                _, error = pipe.recv()
                if not isinstance(error, StopTraining):  # such as a disk that is full
                    raise error from None
        raise
    with suppress(ConnectionError):  # `_listen` notices its death
        pipe.send(True)


def _ended(processes: Sequence[Any]) -> list[Any]:
    """Those that have ended or are about to: others miss a process that dies before it has an exit code."""
    ready = wait([process.sentinel for process in processes], DEATH_SECONDS)
    ended = [process for process in processes if process.sentinel in ready]
    for process in ended:
        process.join()
    return ended


def _death(processes: Iterable[Any]) -> ParallelError | None:
    """The error that a process did not live to send, if there is one."""
    for process in processes:
        if process.exitcode not in (None, 0):
            return ParallelError(
                f"one of the run's processes died (exit code {process.exitcode}; -9 is often a lack "
                "of memory): started again, the run goes on from its checkpoint"
            )
    return None


def _work(
    environment: dict[str, str],
    work: Train,
    config: Config,
    plugins: Sequence[Source],
    checkpoint_dir: Path | None,
    pipe: Connection,
) -> None:
    """A process of `launch`: trains, and tells the parent."""
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(progress: Any) -> None:
        pipe.send(("report", progress))
        if not pipe.recv():
            raise StopTraining

    try:
        with use(*plugins):
            result = work(config, report, checkpoint_dir)
    except Exception as error:
        error.add_note(f"in process {environment['RANK']}:\n{traceback.format_exc()}")
        with suppress(BrokenPipeError):  # another process was faster, and the parent has gone
            pipe.send(("error", error))
        return
    if environment["RANK"] == "0":
        pipe.send(("result", result))


def _end_with_parent() -> None:
    """However the parent ends: a process left alone would wait for its peers for hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
