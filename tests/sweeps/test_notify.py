"""Who is told what of a sweep, when something stalls, and that a notification harms nothing."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from test_progress import KIND, PARAMS, progress, shown

from semidavil.config import ConfigError
from sweeps import batch
from sweeps.batch import notifying
from sweeps.request import Options
from sweeps.run.events import Progress
from sweeps.show import notify as notify_module
from sweeps.show.notify import Notifier
from sweeps.show.progress import STALL_SECONDS, SweepProgress
from sweeps.stopping import AskedToStop


class Hook:
    """An address that remembers what it gets, and answers with a code."""

    def __init__(self) -> None:
        self.got: list[dict[str, object]] = []
        self.code = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                hook.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(hook.code)
                self.end_headers()

            def log_message(self, *arguments: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    one = Hook()
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_an_address_gets_json(hook: Hook) -> None:
    notify = Notifier(hook.address, {"grid": "attention"}, pytest.fail)
    notify("failed", "dlg has failed: a broken image", cell="dlg", done=3)
    notify.close()
    (got,) = hook.got
    assert got["event"] == "failed"
    assert got["text"] == "dlg has failed: a broken image"
    assert (got["grid"], got["cell"], got["done"]) == ("attention", "dlg", 3)
    assert {"time", "host"} <= got.keys()


def test_a_command_gets_variables_and_no_part_of_the_text_is_executed(tmp_path: Path) -> None:
    file = tmp_path / "told"
    notify = Notifier(f'echo "$SEMIDAVIL_EVENT: $SEMIDAVIL_TEXT" >> {file}', {}, pytest.fail)
    notify("stalled", "dlg: `touch /nowhere/x` $(exit 1)")
    notify.close()
    assert file.read_text() == "stalled: dlg: `touch /nowhere/x` $(exit 1)\n"


def test_the_command_that_is_shown_runs_in_any_shell(tmp_path: Path) -> None:
    """Debian's `sh` knows no `<<<`, and the message was lost."""
    (example,) = re.findall(r"--notify '(.+)'", notify_module.__doc__ or "")
    file = tmp_path / "mail"
    said: list[str] = []
    notify = Notifier(
        f'mail() {{ cat > {file}; echo "$2" >> {file}; }}; {example}', {}, said.append
    )
    notify("failed", "dlg has failed")
    notify.close()
    assert (said, file.read_text()) == ([], "dlg has failed\nfailed\n")


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/secret-hook", "exit 7", "refusing"])
def test_what_cannot_be_sent_is_said_once_without_the_address(target: str, hook: Hook) -> None:
    said: list[str] = []
    hook.code = 404
    notify = Notifier(hook.address if target == "refusing" else target, {}, said.append)
    notify("failed", "one")
    notify("finished", "two")
    notify.close()
    (text,) = said
    assert text.startswith("--notify does not work")
    assert "secret-hook" not in text


def test_one_that_hangs_does_not_keep_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify_module, "CLOSING_SECONDS", 0.05)
    monkeypatch.setattr(notify_module, "COMMAND_SECONDS", 0.2)
    notify = Notifier("sleep 60", {}, lambda text: None)
    notify("finished", "over")
    notify.close()  # within the test's time
    notify._thread.join(30)
    assert not notify._thread.is_alive()


# What is told


class Told(list[tuple[str, str]]):
    def __call__(self, event: str, text: str, **fields: object) -> None:
        self.append((event, text))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("sweeps.show.progress.time.monotonic", lambda: now[0])
    return now


def watched(told: Told) -> SweepProgress:
    one = progress()
    one.notify = told
    return one


def test_a_run_that_is_given_up_is_told(clock: list[float]) -> None:
    told = Told()
    one = watched(told)
    one.start("a", PARAMS)
    one.end("a", error="ValueError: a broken image\nand where")
    assert told == [("failed", "a has failed: ValueError: a broken image")]


def test_a_silence_is_told_once_and_again_after_a_word(clock: list[float]) -> None:
    told = Told()
    one = watched(told)
    one.start("a", PARAMS)
    clock[0] += STALL_SECONDS - 1
    one.breathe()
    assert told == []
    clock[0] += 2
    one.breathe()
    one.breathe()
    assert [event for event, _ in told] == ["stalled"]
    assert "no progress for 10 min, in starting" in shown(one)
    one.update("a", Progress(1, 160, "training"))
    # It has now been silent for 601 seconds and gone on: that is no reason to worry again.
    clock[0] += STALL_SECONDS + 2
    one.breathe()
    assert len(told) == 1
    clock[0] += 10 * STALL_SECONDS
    one.breathe()
    assert [event for event, _ in told] == ["stalled", "stalled"]


def test_long_runs_may_be_silent_for_longer(clock: list[float]) -> None:
    told = Told()
    one = watched(told)
    for _ in range(20):
        one.pace.finished(KIND, 36000.0)  # ten hours
    one.start("a", PARAMS)
    clock[0] += 3599.0
    one.breathe()
    assert told == []
    clock[0] += 2.0
    one.breathe()
    assert len(told) == 1


def test_where_there_is_no_terminal_a_line_now_and_then_says_what_goes_on(
    clock: list[float],
) -> None:
    one = progress()
    one.start("a", PARAMS)
    one.update("a", Progress(40, 160, "training", score=31.25, loss=0.5))
    one.breathe()
    assert shown(one) == ""
    clock[0] += 601
    one.breathe()
    one.breathe()
    assert "0/4; a 40/160 loss 0.500, mIoU 31.25; " in shown(one)
    assert shown(one).count("\n") == 2  # with the one that it is silent


@pytest.mark.parametrize(
    ("error", "event", "code"),
    [
        (None, "finished", 0),
        (AskedToStop("ada@host"), "stopped", 4),
        (KeyboardInterrupt(), "stopped", 130),
        (ValueError("a fault"), "failed", 1),
        (ConfigError("unknown preset"), None, 2),  # whoever has typed it sees why
    ],
)
def test_the_end_of_a_sweep_is_told_with_its_exit_code(
    error: BaseException | None,
    event: str | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, object]] = []

    class Remembered:
        def __init__(self, *arguments: object) -> None: ...

        def __call__(self, event: str, text: str, **fields: object) -> None:
            told.append((event, fields["exit_code"]))
            assert not isinstance(error, KeyboardInterrupt) or str(error) or "by Ctrl-C" in text

        def close(self) -> None: ...

    monkeypatch.setattr(batch, "Notifier", Remembered)
    options = Options(notify="a command", grid="attention")
    with (
        pytest.raises(type(error)) if error else nullcontext(),
        notifying(options, Console(quiet=True)) as (_, ended),
    ):
        if error:
            raise error
        ended(0)
    assert told == ([(event, code)] if event else [])
