"""Settings as people read and write them: a table of all, a YAML file of those of a run.

print(to_yaml(config, "toy"))
preset_name, changes = read_yaml(Path("mine.yaml"))
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from rich.markup import escape
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import NOT_SET, PRESETS, Config, ConfigError, every_setting
from semidavil.names import CAPTION_KINDS, DENSE, FUSIONS, LOSSES, METHODS
from semidavil.settings import Section

PRESET = "preset"  # the key of a file that says what it began with
CHOICES: dict[str, Collection[str]] = {
    "data.benchmark": BENCHMARKS,
    "model.dense": DENSE,
    "model.fusion": FUSIONS,
    "model.captions": CAPTION_KINDS,
    "loss.name": LOSSES,
    "training.method": METHODS,
}
# Where files lie on one machine.
PLACES = ("runtime.data_root", "runtime.cache_dir")


def settings_table(config: Config, preset_name: str) -> Table:
    """Every setting: its value in `config`, the paper's where that is another, what it means."""
    table = Table(
        "setting", preset_name, "paper", "meaning", title="settings", title_justify="left"
    )
    values, defaults = config.to_params(), Config().to_params()
    for path, info in _fields(Config):
        value, default = values[path], defaults[path]
        about = " ".join((info.description or "").split())
        if choices := _choices(path, info.annotation):
            about = f"{', '.join(choices)}. {about}"
        shown = [path, value, "" if value == default else default, about]
        table.add_row(*map(escape, shown))
    return table


def _fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    known = every_setting()
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _fields(info.annotation, f"{name}.")
        elif f"{prefix}{name}" in known:
            yield f"{prefix}{name}", info


def _choices(path: str, annotation: Any) -> list[str]:
    """The words of a `Literal`, or of a table."""
    if path in CHOICES:
        return list(CHOICES[path])
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return []


def to_yaml(config: Config, preset_name: str, leave_out: tuple[str, ...] = ()) -> str:
    """Every setting of a Config, by section; without `leave_out` and what is of one machine alone."""
    tree = config.model_dump(mode="json")
    for path in (*leave_out, *PLACES, *NOT_SET):
        section, _, name = path.rpartition(".")
        del (tree[section] if section else tree)[name]
    lines = [f"# it uses --plugin {each}" for each in config.plugins]
    lines.append(f"{PRESET}: {preset_name}")
    for name, value in tree.items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {inner}: {_scalar(each)}" for inner, each in value.items()]
        else:
            lines.append(f"{name}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    """A value on one line."""
    # PyYAML would write line breaks such as U+0085 as they are, and read blanks in their place.
    plain = not isinstance(value, str) or value.isprintable()
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=plain)
    return text.removesuffix("...\n").rstrip("\n")


def read_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    """The preset that a file names, if it does, and its settings that are not that preset's, by dotted name.

    Sections may be nested, as `to_yaml` writes them, or names dotted.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        tree = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--config {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"--config {path} has no settings, such as `training: {{lr: 3e-4}}`")
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            settings |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            settings[str(name)] = value
    preset_name = settings.pop(PRESET, "")
    if preset_name and preset_name not in PRESETS:
        raise ConfigError(
            f"--config {path} names the preset {preset_name!r}: choose from {', '.join(PRESETS)}"
        )
    if empty := [name for name, value in settings.items() if value is None]:
        raise ConfigError(f"--config {path}: {empty[0]} has no value")
    return str(preset_name), settings
