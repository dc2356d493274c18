"""Trains a tracked run again from what MLflow knows of it, and compares the numbers.

Nothing is tracked: the run stays the one of its Config.
"""

import json
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.bars import transient_bars
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.fingerprint import differences
from semidavil.place import command
from semidavil.plugin_files import PLUGINS
from semidavil.plugins import missing
from sweeps.run.worker import load_training
from sweeps.show.find import find_run
from sweeps.track.provenance import CODE, code_tags, device_name
from sweeps.track.retry import TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

TOLERANCE = 1e-4  # points of the score; on the machine of the run there is no difference at all


def rerun(
    store: Store,
    named: str,
    changes: Mapping[str, str],
    root: Path | None,
    console: Console,
    train: str,
) -> bool:
    """Prints recorded and new numbers; returns whether the score is the same.

    Args:
        named: a finished run's name, its id, or the first letters of it.
        changes: settings of `runtime`, such as where data are on this machine.
        root: the checkout, whose code runs.
        train: the training function as `module:function`.

    Raises TrackingError if there is no such run, it has not finished, or its Config means something else now.
    """
    run = find_run(store, named, finished=True)
    require_plugins(run)
    # The run's own device need not exist on this machine.
    config = Config.from_params(run.params).replace({"runtime.device": "auto", **changes})
    if config.key() != run.key:
        raise TrackingError(
            f"run {run.run_id} was made by a version whose results are not comparable: check out "
            f"its commit, {run.tags.get('commit', 'unknown')}"
        )
    module, train_function = load_training(train)
    now = {**code_tags(root), "device": device_name()}
    for text in environment_differences(run, now):
        console.print(f"[yellow]not as then:[/] {escape(text)}")
    if command := code_command(run, now):
        console.print(f"the code of the run: {escape(command)}", soft_wrap=True)
        console.print("  (back again: git checkout -, and git stash pop if something was stashed)")
    module.prepare(config)
    with transient_bars(console=console) as bars, tempfile.TemporaryDirectory() as folder:
        bar = bars.add_task(escape(run.name), total=config.training.steps)
        result = train_function(
            config,
            report=lambda r: bars.update(bar, completed=r.step, total=r.total_steps),
            checkpoint_dir=Path(folder),
        )
    if run.data and (changed := differences(run.data, result.data)):
        console.print(f"[yellow]not as then:[/] data: {escape(', '.join(changed))}")
    return compare(run, config, result.metrics, console)


def require_plugins(run: TrackedRun) -> None:
    """Raises TrackingError, with the command that brings them, if the run uses plugins that are not given."""
    used = json.loads(run.params.get("plugins", "[]"))
    if why := missing(used):
        paths = [shlex.quote(f"{PLUGINS}/{each.rpartition('@')[0]}") for each in used]
        fetch = f"mlflow artifacts download --run-id {run.run_id} --artifact-path"
        options = " ".join(f'--plugin "$({fetch} {path} | tail -n 1)"' for path in paths)
        raise TrackingError(
            f"run {run.run_id} cannot be made again like this: {why}. The run has kept what it used; read it "
            f"before you run it: {command('run')} --rerun {run.run_id} {options}"
        )


def environment_differences(run: TrackedRun, now: Mapping[str, str]) -> list[str]:
    """`version.torch 2.13 -> 2.14` for each tag of code and packages that is not as it was."""
    return [
        f"{name} {run.tags[name]} -> {value}"
        for name, value in now.items()
        if name in run.tags and run.tags[name] != value
    ]


def code_command(run: TrackedRun, now: Mapping[str, str]) -> str:
    """What brings back the code of a run, as far as it is known; empty where it is the present one."""
    commit = run.tags.get("commit", "unknown")
    # Runs from before `changes` were recorded have `dirty` alone.
    before = "none" if run.tags.get("dirty") == "false" else "unknown"
    changes = run.tags.get("changes", before)
    if commit == "unknown" or (commit, changes) == (now["commit"], now["changes"]):
        return ""
    # New files elsewhere are the user's: pictures, plugins.
    command = f"git add {' '.join(CODE)} && git stash && git checkout {commit}"
    if changes == "none":
        return command
    if changes == "unknown":
        return f"{command}  # its uncommitted changes, if it had any, were not kept"
    file = f"--run-id {run.run_id} --artifact-path {shlex.quote(changes)}"
    return f'{command} && git apply "$(mlflow artifacts download {file} | tail -n 1)"'


def compare(
    run: TrackedRun, config: Config, metrics: Mapping[str, float], console: Console
) -> bool:
    """Prints recorded against new metrics, the score first; returns whether the score is the same."""
    benchmark = BENCHMARKS[config.data.benchmark]
    table = Table("metric", "recorded", "now", title=escape(run.name), title_justify="left")
    for name in sorted(metrics, key=lambda name: (name != benchmark.metric, name)):
        if (recorded := run.metrics.get(f"final/{name}")) is not None:
            table.add_row(name, f"{recorded:.4f}", f"{metrics[name]:.4f}")
    console.print(table)
    difference = metrics[benchmark.metric] - run.score
    if abs(difference) <= TOLERANCE:
        console.print(f"{benchmark.score} is reproduced")
        return True
    console.print(
        f"[red]{benchmark.score} is not reproduced:[/] {difference:+.4f}. Another processor or GPU, "
        "other versions or other data change results slightly; the same machine and commit do not."
    )
    return False
