"""Variants from a file of one's own, known wherever the package's own are.

    python sweeps/run.py --plugin my.py --grid attention
    with use(read("my.py")): preset("toy", {"model.fusion": "mine"})

A plugin is a file, or a folder with an `__init__.py`, that has some of the package's tables under their
names: `FUSIONS = {"mine": Mine}`. Its content is its identity: `my.py@3f9c0a12be47` stands in the Config of
each run that uses something of it, and its modules are named by it, so that a process can have two versions
of a file one after the other and mix nothing.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Generic, TypeVar

from semidavil.plugin_files import MODULE_PREFIX, PluginError, Source
from semidavil.text_modules import TextFinder

# What a plugin may define, and what one of it is called.
TABLES = {
    "FUSIONS": "attention",
    "VISION_ONLY": "attention that reads no caption",
    "LOSSES": "loss",
    "METHODS": "method",
    "TRAITS": "method's traits",
    "CAPTIONERS": "captioner",
    "ENCODERS": "encoder",
    "ARCHIVES": "archive's reader",
    "GRIDS": "grid",
    "BENCHMARKS": "benchmark",
}
# What they are made with; a loss also gets the settings that its parameters are called after.
ARGUMENTS = {
    "attention": ("towers", "dim"),
    "loss": ("num_classes",),
    "captioner": ("argument", "setting"),
    "encoder": ("weights", "seed"),
    "archive's reader": ("place",),
}
_NAME = re.compile(r"\w[\w.-]*")

V = TypeVar("V")


# Plugins in use


@dataclass(frozen=True)
class _Plugin:
    source: Source
    module: ModuleType
    imported: frozenset[str]  # tables of the package, which it looks something up in

    def table(self, name: str) -> Mapping[str, Any]:
        entries = self.entries(name)
        return entries if isinstance(entries, Mapping) else dict.fromkeys(entries)

    def entries(self, name: str) -> Any:
        """A table as the plugin has it."""
        return {} if name in self.imported else vars(self.module).get(name, {})


_loaded: dict[str, _Plugin] = {}  # by id: modules stay, since objects of theirs may
_active: dict[str, _Plugin] = {}  # by id: those whose tables count now
_tables: list["_Variants"] = []


@contextmanager
def use(*sources: Source) -> Iterator[None]:
    """What these plugins define is known, and forgotten afterwards. Those in use already stay so.

    Raises:
        PluginError: one cannot be imported, or defines what there is already.
    """
    added = []
    try:
        for source in sources:
            if source.id not in _active:
                plugin = _load(source)
                _refuse_clashes(plugin)
                _active[source.id] = plugin
                added.append(source.id)
        yield
    finally:
        for each in added:
            del _active[each]


def in_use(ids: Iterable[str] | None = None) -> list[Source]:
    """The plugins in use: all of them, or those of `ids`."""
    return [each.source for i, each in _active.items() if ids is None or i in ids]


def provider(table: str, name: str) -> str | None:
    """The id of the plugin that a variant is from; None for the package's own."""
    return next((id for id, plugin in _active.items() if name in plugin.table(table)), None)


def missing(ids: Sequence[str]) -> str:
    """What to say of plugins that are needed and not in use; empty if all are."""
    lacking = [each for each in ids if each not in _active]
    if not lacking:
        return ""
    text = f"it uses {' and '.join(lacking)}: give --plugin FILE for each"
    here = {source.name: source.id for source in in_use()}
    for each in lacking:
        if (other := here.get(each.partition("@")[0])) is not None:
            text += f"; {other} is another version of it"
    return text


def place_of(error: BaseException) -> str:
    """`my.py, line 12`: where in a plugin an error was raised, or its class that was called otherwise than
    it says; empty if it was elsewhere."""
    known = _files()
    frames = [*traceback.walk_tb(error.__traceback__)][::-1]
    for frame, line in frames:
        if frame.f_code.co_filename in known:
            return f"{known[frame.f_code.co_filename]}, line {line}"
    return next(filter(None, (home_of(frame.f_locals.get("self")) for frame, _ in frames)), "")


def home_of(thing: object) -> str:
    """`my.py, line 5`: where a plugin has a function, a class, or an object's class; empty if none has it."""
    owner = thing if isinstance(thing, type | FunctionType) else type(thing)
    if not owner.__module__.startswith(MODULE_PREFIX):
        return ""
    return f"{_files()[inspect.getfile(owner)]}, line {inspect.getsourcelines(owner)[1]}"


def _files() -> dict[str, str]:
    """What people call each file of the plugins, by its place."""
    return {
        source.place(file): file if file == source.name else f"{source.name}/{file}"
        for source in (plugin.source for plugin in _loaded.values())
        for file in source.files
    }


# Tables


class _Variants:
    """The names of the package's variants of one kind, then those of the plugins in use.

    Args:
        name: of `TABLES`.
        own: the package's.
    """

    def __init__(self, name: str, own: Collection[str]) -> None:
        self.name, self.own = name, own
        _tables.append(self)

    def __contains__(self, key: object) -> bool:
        return any(key == name for name in self)

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        for plugin in _active.values():
            yield from plugin.table(self.name)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Table(_Variants, Mapping[str, V], Generic[V]):
    """What the names stand for.

    Args:
        convert: makes of a plugin's entry, and its name, what the package's are.
    """

    own: Mapping[str, V]

    def __init__(
        self, name: str, own: Mapping[str, V], convert: Callable[[str, Any], V] | None = None
    ) -> None:
        super().__init__(name, dict(own))
        self.convert = convert

    def __getitem__(self, key: str) -> V:
        if key in self.own:
            return self.own[key]
        for plugin in _active.values():
            if key in (entries := plugin.table(self.name)):
                return self.convert(key, entries[key]) if self.convert else entries[key]
        raise KeyError(key)


class Names(_Variants, Collection[str]):
    """The names alone, where what they stand for is not to be imported."""

    def __repr__(self) -> str:
        return repr(tuple(self))


# Loading


_finder = TextFinder()


def _load(source: Source) -> _Plugin:
    if source.id not in _loaded:
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
        _finder.sources[source.module] = source
        try:
            module = importlib.import_module(source.module)
        except Exception as error:
            for name in [n for n in sys.modules if n.partition(".")[0] == source.module]:
                del sys.modules[name]
            raise PluginError(_why_not_imported(source, error)) from error
        plugin = _Plugin(source, module, _imported_tables(module))
        _check(plugin)
        _loaded[source.id] = plugin
    return _loaded[source.id]


def _imported_tables(module: ModuleType) -> frozenset[str]:
    ours = [each for name, each in list(sys.modules.items()) if name.startswith("semidavil.")]
    found = {table: vars(module)[table] for table in TABLES if table in vars(module)}
    return frozenset(
        table
        for table, entries in found.items()
        if any(vars(m).get(table) is entries for m in ours)
    )


def _why_not_imported(source: Source, error: Exception) -> str:
    if isinstance(error, PluginError):
        return str(error)
    places = {source.place(file): file for file in source.files}
    if isinstance(error, SyntaxError) and error.filename in places:
        where, text = (error.filename, error.lineno), error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [(f.filename, f.lineno) for f in frames if f.filename in places]
        where, text = own[-1] if own else (source.place(source.name), None), str(error)
    told = f"{where[0]}, line {where[1]}: {type(error).__name__}: {text}"
    name = getattr(error, "name", None) or ""
    beside = Path(source.folder, f"{name}.py")
    if isinstance(error, ImportError) and source.folder and beside.is_file():
        told += (
            f". A plugin is one file, or a folder with an __init__.py: there, `from .{name} import ...` "
            "imports a file beside it"
        )
    elif isinstance(error, ModuleNotFoundError):
        told += ". What a plugin imports has to be installed on each machine that trains"
    return told


def _check(plugin: _Plugin) -> None:
    """Raises PluginError for a table that cannot be meant so, before anything is trained."""
    name = plugin.source.name
    if not any(plugin.entries(table) for table in TABLES):
        raise PluginError(
            f"the plugin {name} defines nothing: it needs one of {', '.join(TABLES)}, such as "
            'FUSIONS = {"mine": Mine}'
        )
    for table, what in TABLES.items():
        entries = plugin.entries(table)
        if not isinstance(entries, Mapping) and not (
            table == "VISION_ONLY" and isinstance(entries, tuple | list | set)
        ):
            raise PluginError(f"{table} of the plugin {name} is no dict from names to {what}s")
        for key, entry in plugin.table(table).items():
            if not (isinstance(key, str) and _NAME.fullmatch(key)):
                raise PluginError(
                    f"{table} of the plugin {name} has the name {key!r}: letters, digits, _, - and . are "
                    "allowed"
                )
            if table == "BENCHMARKS":
                _check_benchmark(plugin, key, entry)
            elif table not in ("VISION_ONLY", "TRAITS", "GRIDS"):
                _check_callable(plugin, key, entry, what)
    if lacking := [key for key in plugin.table("METHODS") if key not in plugin.table("TRAITS")]:
        raise PluginError(
            f"the plugin {name} does not say which images its method {lacking[0]!r} draws: TRAITS = "
            f'{{"{lacking[0]}": Traits("images", frozenset(STREAMS))}}, both from semidavil.names'
        )
    if unknown := sorted({*plugin.table("VISION_ONLY")} - {*plugin.table("FUSIONS")}):
        raise PluginError(
            f"VISION_ONLY of the plugin {name} names {unknown[0]!r}, which is not in its FUSIONS"
        )


def _check_benchmark(plugin: _Plugin, key: str, entry: object) -> None:
    if not isinstance(entry, str | Path | Mapping):
        raise PluginError(
            f"the benchmark {key!r} of the plugin {plugin.source.name} is neither the path of a "
            "benchmark.yaml or dataset.yaml nor a dict of what such a file says"
        )


def _check_callable(plugin: _Plugin, key: str, entry: object, what: str) -> None:
    if not callable(entry):
        raise PluginError(
            f"the {what} {key!r} of the plugin {plugin.source.name} is no class or function"
        )
    if taken := ARGUMENTS.get(what):
        try:
            signature = inspect.signature(entry)
            (signature.bind_partial if what == "loss" else signature.bind)(*taken)
        except ValueError:  # of what is written in C, nobody knows them
            pass
        except TypeError as error:
            raise PluginError(
                f"{_where(plugin, entry)}: the {what} {key!r} is made with ({', '.join(taken)}): {error}"
            ) from error
    forward = getattr(entry, "forward", None)
    # What torch.nn.Module has in place of a forward that nobody has written.
    if isinstance(entry, type) and getattr(forward, "__name__", "") == "_forward_unimplemented":
        if what == "method":  # which has `losses` instead
            return
        raise PluginError(f"{_where(plugin, entry)}: the {what} {key!r} has no forward(...)")


def _where(plugin: _Plugin, entry: object) -> str:
    """File and line of a class or function; the plugin's name if another module has it."""
    if (isinstance(entry, type) or inspect.isfunction(entry)) and entry.__module__.startswith(
        plugin.source.module
    ):
        return f"{inspect.getfile(entry)}, line {inspect.getsourcelines(entry)[1]}"
    return plugin.source.name


def _refuse_clashes(plugin: _Plugin) -> None:
    if other := [each for each in in_use() if each.name == plugin.source.name]:
        raise PluginError(
            f"two plugins are called {plugin.source.name} ({other[0].folder}, {plugin.source.folder}): give "
            "one of them another name"
        )
    for table in _tables:
        for key in plugin.table(table.name):
            if key in table:
                by = provider(table.name, key) or "the package itself"
                raise PluginError(
                    f"the plugin {plugin.source.name} defines the {TABLES[table.name]} {key!r}, which {by} "
                    "has already: give it another name"
                )
