"""Several values of a setting: `--set a=1,2` sweeps them, `--only a=1,2` narrows a grid."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence

from semidavil.config import Config, ConfigError, every_setting, parse_settings, read_value
from sweeps.plan.combine import product
from sweeps.plan.grid import Grid, short

VARIANT = "variant"  # in --only: what a grid calls its variants
# Free text, and JSON, in which a comma is one.
TEXTS = ("model.caption_prompt", "data.own")


def values_of(path: str, text: str) -> list[str]:
    """The values that a text names: `1,2` two, `[1, 2]` and `"a, b"` one.

    Of a setting that is a text itself (a prompt), or changes no result (`runtime`), it is one value, unless
    each of several is quoted.
    """
    quoted = text.startswith('"')
    if not quoted and (path in TEXTS or path.startswith("runtime.")):
        return [text]
    parts, depth, in_quotes = [""], 0, False
    for character in text:
        if character == '"':
            in_quotes = not in_quotes
        if not in_quotes:
            depth += (character in "[(") - (character in "])")
            if character == "," and depth == 0:
                parts.append("")
                continue
        parts[-1] += character
    parts = [part.strip() for part in parts]
    if not all(parts) and len(parts) > 1:
        raise ConfigError(f"{path}={text}: a value between two commas is missing")
    return [_unquoted(part) for part in parts]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            return text
    return text


def variations(base: Config, swept: Sequence[str]) -> list[Config]:
    """`base` with every combination of the values of settings, each as `training.lr=1e-4,3e-4`."""
    pairs = parse_settings(swept)
    return product(base, {path: values_of(path, text) for path, text in pairs.items()})


def setting_of(name: str, grid: Grid) -> str:
    """The setting that a short name stands for: `fusion` is `model.fusion`; or `variant`.

    Raises:
        ConfigError: there is none, or there are several of which the grid does not vary just one.
    """
    settings = every_setting()
    if name == VARIANT or name in settings:
        return name
    found = [path for path in settings if name in (short(path), path.rpartition(".")[2])]
    of_grid = [path for path in found if path in grid.baseline]
    if len(of_grid) == 1 or len(found) == 1:
        return (of_grid or found)[0]
    if found:
        raise ConfigError(f"--only {name}: write {' or '.join(found)}")
    close = difflib.get_close_matches(name, [VARIANT, *map(short, settings)], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(dict.fromkeys(close))}? " if close else ""
    raise ConfigError(f"--only {name}: there is no such setting; {hint}All of them: --settings")


def narrowed(configs: Iterable[Config], only: Sequence[str], grid: Grid) -> list[Config]:
    """Those of a grid's Configs that have one of the values of each setting in `only`."""
    left = list(configs)
    for path, values in _wanted(only, grid).items():
        left = [config for config in left if _value(config, path, grid) in values.values()]
    return left


def require_present(configs: Iterable[Config], only: Sequence[str], grid: Grid) -> None:
    """Raises ConfigError for a value in `only` that no Config has: it is misspelt, or the grid has others."""
    configs = list(configs)
    for path, values in _wanted(only, grid).items():
        present = {json.dumps(v): v for v in (_value(config, path, grid) for config in configs)}
        for text, value in values.items():
            if value not in present.values():
                there = ", ".join(
                    v if isinstance(v, str) else json.dumps(v) for v in present.values()
                )
                raise ConfigError(f"no run has {short(path)}={text}: there are {there}")


def _wanted(only: Sequence[str], grid: Grid) -> Mapping[str, dict[str, object]]:
    """By setting, the values that may be, by what was written."""
    wanted: dict[str, dict[str, object]] = {}
    for name, text in parse_settings(only, "--only").items():
        path = setting_of(name, grid)
        wanted[path] = {
            value: value if path == VARIANT else read_value(path, value)
            for value in values_of(path, text)
        }
    return wanted


def _value(config: Config, path: str, grid: Grid) -> object:
    return grid.variant(config) if path == VARIANT else read_value(path, config.to_params()[path])
