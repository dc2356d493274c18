"""Ray's Python processes as forks of the command that starts Ray: they need not import Ray and MLflow again.

Ray starts each of them as `sys.executable SCRIPT ...`: workers, agents, monitors, which spend most of a short
sweep on imports. In a command of `forked_commands` that executable is a launcher, which hands environment,
folder, arguments, signal mask, input and output to the command's nursery: a fork of it from before it
began, in its session and process group. The nursery forks, and the fork runs the script. Launcher and fork
end with each other. What is not Ray's own script is run by the launcher as by any other Python.
"""

import array
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# What a worker tells Ray when that is imported: no job yet, as of workers that Ray starts in advance; and the
# raylet to end with, which a fork hears of only later and looks after itself, see `_end_with`.
BEFORE_IMPORTS = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": "1"}
# Ray's agents look for a parent that is the raylet, unless the raylet holds a pipe to them.
ENVIRONMENT = {"RAY_enable_pipe_based_agent_to_parent_health_check": "1"}
# `python SCRIPT ARGUMENTS` in a folder and an environment, with some signals blocked
Run = Callable[[str, Sequence[str], str, Mapping[str, str], Sequence[int]], None]


def open_nursery(folder: Path, run: Run) -> str:
    """Forks a process that forks until this one ends; returns the launcher, to be `sys.executable`.

    Args:
        folder: of launchers and sockets, whose names are limited to some 100 characters.
        run: runs a script as `__main__`, in a fork, which ends with it.
    """
    launcher, address = folder / f"python-{os.getpid()}", folder / f"socket-{os.getpid()}"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{address}" "$@"\n')
    launcher.chmod(0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    ended, alive = os.pipe()  # no process but this one has `alive`
    if os.fork() == 0:
        os.close(alive)
        _fork_for_each(listener, ended, run)
        os._exit(0)
    os.close(ended)
    listener.close()
    return str(launcher)


def _fork_for_each(listener: socket.socket, ended: int, run: Run) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # as it comes to all processes of a job
    while True:
        ready, _, _ = select.select([listener, ended], [], [])
        if ended in ready:
            return
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(ended)
            _answer(client, run)
            sys.exit(0)  # of a fork, as at the end of a script
        client.close()


def _answer(client: socket.socket, run: Run) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    header, handles, _, _ = socket.recv_fds(client, 4, 3)
    data = client.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)
    for standard, handle in enumerate(handles):
        os.dup2(handle, standard)
        os.close(handle)
    request = json.loads(data)
    if request["leads_group"]:  # Ray kills a worker with its group
        os.setpgid(0, 0)
    script, *arguments = request["arguments"]
    environment = request["environment"]
    raylet = environment.get("RAY_RAYLET_PID")
    # In the thread, where one would end the process; `run` sets what the fork itself hears.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Thread(target=_end_with, args=[client, raylet], daemon=True).start()
    if Path(script).name == "setup_worker.py":  # it would set the environment and replace itself
        from ray._private.runtime_env.context import RuntimeEnvContext

        script, *arguments = arguments
        (text,) = (a for a in arguments if a.startswith("--serialized-runtime-env-context="))
        context = RuntimeEnvContext.deserialize(text.partition("=")[2])
        assert not context.command_prefix, text
        environment |= context.env_vars
        arguments = [a for a in arguments if a != text and not a.startswith("--language=")]
    run(script, arguments, request["folder"], environment, request["blocked"])


def _end_with(launcher: socket.socket, raylet: str | None) -> None:
    """Kills this process when one of them has ended."""
    with suppress(ProcessLookupError):
        others = [launcher.fileno(), *([os.pidfd_open(int(raylet))] if raylet else [])]
        select.select(others, [], [])
    os.kill(os.getpid(), signal.SIGKILL)


# In the launcher, which imports as little as it can


def launch(address: str, arguments: Sequence[str]) -> None:
    given = [argument for argument in arguments if argument != "-u"]
    if not ("/ray/" in given[0] and given[0].endswith(".py")):
        os.execv(sys.executable, [sys.executable, *arguments])
    request = {
        "arguments": given, "folder": os.getcwd(), "environment": dict(os.environ),
        "blocked": list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "leads_group": os.getpgrp() == os.getpid(),
    }  # fmt: skip
    data = json.dumps(request).encode()
    nursery = socket.socket(socket.AF_UNIX)
    nursery.connect(address)
    header = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    nursery.sendmsg([len(data).to_bytes(4, "big")], header)
    nursery.sendall(data)
    for standard in range(3):
        os.close(standard)
    nursery.recv(1)


if __name__ == "__main__":
    launch(sys.argv[1], sys.argv[2:])
