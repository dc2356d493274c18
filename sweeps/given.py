"""What a command names before its grid is looked up: plugins, and a file of settings."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semidavil.config import ConfigError, default_preset, preset
from semidavil.describe import read_yaml
from semidavil.plugin_files import Source, installed, read
from semidavil.plugins import provider
from sweeps.plan.grid import require_known
from sweeps.plan.grids import ALL, GRIDS, SEARCH

if TYPE_CHECKING:
    from sweeps.request import Options


def plugins_given(arguments: Sequence[str]) -> list[Source]:
    """The plugins that a command names, by --plugin or by --grid FILE:NAME, and the installed ones.

    Raises:
        PluginError: one cannot be read.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--plugin", nargs="+", action="extend", default=[])
    early.add_argument("--grid", default="")
    try:
        named, _ = early.parse_known_args(list(arguments))
    except argparse.ArgumentError:  # the whole parser says so
        return []
    file, _ = grid_of(named.grid)
    sources = [*installed(), *map(read, dict.fromkeys([*named.plugin, *([file] if file else [])]))]
    return list({source.id: source for source in sources}.values())


def grid_of(text: str) -> tuple[str, str]:
    """File and name of a grid: `my.py:ladder` has both, `attention` the name alone."""
    file, colon, name = text.rpartition(":")
    if colon and (file.endswith(".py") or Path(file).is_dir()):
        return file, name
    return "", text


def known_grid(text: str | None) -> str | None:
    """The name of a grid as --grid has it, `attention` or `my.py:ladder`; None without one.

    Raises:
        ConfigError: there is no such grid.
    """
    if not text:
        return None
    file, name = grid_of(text)
    if not file and (text.endswith(".py") or Path(text).is_dir()):
        raise ConfigError(f"--grid {text}: name one of its grids, --grid {text}:NAME")
    if file:
        of_file = {each: None for each in GRIDS if _is_of(file, provider("GRIDS", each))}
        if not of_file:
            raise ConfigError(f"--grid {text}: {file} has no grids, GRIDS = {{'{name}': [...]}}")
        require_known(name, of_file, f"grid of {file}")
    else:
        require_known(name, {**GRIDS, ALL: None, SEARCH: None}, "grid")
    return name


def _is_of(file: str, plugin: str | None) -> bool:
    return plugin is not None and plugin.partition("@")[0] == Path(file).name


def take_config(options: "Options") -> None:
    """Reads the file of --config into the options. What the command names itself goes before.

    Raises:
        ConfigError: it cannot be read, or a setting of it is wrong.
    """
    if not options.config:
        return
    name, changes = read_yaml(Path(options.config))
    options.preset = options.preset or name or default_preset(options.data_root)
    plain, whole = preset(options.preset), preset(options.preset, changes)
    before, after = plain.to_params(), whole.to_params()
    options.from_file = {
        # Quoted, a comma is none between two values.
        path: json.dumps(text) if "," in text and not text.startswith("[") else text
        for path, text in after.items()
        if path in changes and text != before[path]
    }
    for path, of_option in (
        ("data.benchmark", "benchmark"),
        ("data.budget", "budgets"),
        ("seed", "seeds"),
    ):
        options.from_file.pop(path, None)
        if path in changes and not getattr(options, of_option):
            section, _, field = path.rpartition(".")
            setattr(
                options, of_option, [getattr(getattr(whole, section) if section else whole, field)]
            )
