"""A plugin's content: a file, or a folder with an `__init__.py`, read and never executed here.

Its content is its identity: `my.py@3f9c0a12be47` stands in the Config of each run that uses something of it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "semidavil.plugins"  # of entry points: an installed package's module
PLUGINS = "plugins"  # the folder that a run keeps its own in
MOST_BYTES = 2**20  # of a plugin's Python files, which travel with each task
MODULE_PREFIX = "semidavil_plugin_"


class PluginError(ValueError):
    """A plugin that cannot be used; the message says where, and what to do."""


@dataclass(frozen=True)
class Source:
    """A plugin's content.

    Attributes:
        name: of its file or folder.
        files: text by path; of a folder, relative to it.
        folder: that the files lie in here; empty where they came from another machine.
    """

    name: str
    files: Mapping[str, str]
    folder: str = field(default="", compare=False)

    @cached_property
    def id(self) -> str:
        """`my.py@3f9c0a12be47`: the same for the same content."""
        text = json.dumps([self.name, dict(self.files)], sort_keys=True)
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def module(self) -> str:
        return MODULE_PREFIX + re.sub(r"\W", "_", self.id)

    def place(self, file: str) -> str:
        """What tracebacks call a file: its path, or what is known of it."""
        return str(Path(self.folder, file)) if self.folder else f"{self.id}/{file}"

    def write(self, folder: Path) -> None:
        """Writes the plugin as it was read: `folder/my.py`, or `folder/mine/`."""
        top = folder if self.name in self.files else folder / self.name
        for file, text in self.files.items():
            path = top / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def read(path: str | Path) -> Source:
    """The plugin at `path`; nothing of it is executed.

    Raises:
        PluginError: there is none, or it is more than `MOST_BYTES`.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir() and not (path / "__init__.py").is_file():
        raise PluginError(
            f"the plugin {path} has no __init__.py, in which its tables are looked for"
        )
    if not path.is_dir() and path.suffix != ".py":
        raise PluginError(f"the plugin {path} is neither a file.py nor a folder of Python files")
    folder = path if path.is_dir() else path.parent
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    try:
        files = {each.relative_to(folder).as_posix(): each.read_text("utf-8") for each in found}
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"the plugin {path} cannot be read: {error}") from error
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise PluginError(
            f"the plugin {path} has {size / 2**20:.1f} MB of Python files, which would travel with each run: "
            "name the file that has the variants, or a folder with little else"
        )
    return Source(path.name, files, str(folder))


def installed() -> list[Source]:
    """The plugins of installed packages, by their entry points in the group `semidavil.plugins`.

    Raises:
        PluginError: an entry point names no module that is here.
    """
    found = []
    for point in entry_points(group=GROUP):
        try:
            spec = find_spec(point.module)
        except ImportError:
            spec = None
        if spec is None or spec.origin is None:
            raise PluginError(
                f"the entry point {point.name} = {point.value} ({GROUP}) names no module: uninstall or mend "
                f"the package {point.dist.name if point.dist else 'that has it'}"
            )
        path = Path(spec.origin)
        found.append(read(path.parent if spec.submodule_search_locations else path))
    return found
