"""Python modules that are made of texts, wherever those came from: the machinery below `plugins`."""

import linecache
from collections.abc import Mapping
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import CodeType, ModuleType
from typing import Any, Protocol


class Texts(Protocol):
    """A module's files, or a package's, by path."""

    @property
    def name(self) -> str:
        """The file of a module that is no package."""
        ...

    @property
    def files(self) -> Mapping[str, str]: ...

    def place(self, file: str) -> str:
        """What tracebacks call a file."""
        ...


class TextLoader(InspectLoader):
    """Makes modules of texts. Tracebacks, `inspect` and `torch.compile` find the texts as well."""

    def __init__(self, source: Texts, file: str) -> None:
        self.source, self.file = source, file

    def get_source(self, fullname: str) -> str:
        return self.source.files[self.file]

    def get_code(self, fullname: str) -> CodeType:
        text, place = self.get_source(fullname), self.source.place(self.file)
        linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
        return compile(text, place, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.source.place(self.file)
        exec(self.get_code(module.__name__), module.__dict__)


class TextFinder(MetaPathFinder):
    """Finds modules of texts that have been read, by names that no other module has."""

    def __init__(self) -> None:
        self.sources: dict[str, Texts] = {}  # by the module's name

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        top, _, rest = fullname.partition(".")
        if (source := self.sources.get(top)) is None:
            return None
        inner = rest.replace(".", "/")
        files = (f"{inner}/__init__.py", f"{inner}.py") if rest else ("__init__.py", source.name)
        for file in files:
            if file in source.files:
                package = file.endswith("__init__.py")
                return spec_from_loader(fullname, TextLoader(source, file), is_package=package)
        return None
