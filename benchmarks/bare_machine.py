"""Imported before the package where little is installed: it is then found, and does without rich."""

import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path


class Silent:
    """Takes the place of a progress bar or a console."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_, **__: 0


STAND_INS = {
    "rich": {"get_console": Silent},
    "rich.console": {"Console": Silent},
    "rich.markup": {"escape": str},
    "rich.progress": {
        "MofNCompleteColumn": Silent,
        "Progress": Silent,
        "TimeRemainingColumn": Silent,
        "track": lambda items, *_, **__: items,
    },
}

sys.path.append(str(Path(__file__).resolve().parents[1]))
if find_spec("rich") is None:
    for name, content in STAND_INS.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
