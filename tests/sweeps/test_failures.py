"""Which errors are worth another try."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from semidavil.plugin_files import Source
from semidavil.plugins import use
from sweeps.run.events import Failure
from sweeps.run.failures import failure_of

CODE = """
import torch
from semidavil.config import preset
from semidavil import names

FUSIONS = {"mine": lambda towers, dim: None}

def of_python(text):
    return text.no_such_name

def of_a_library():
    return torch.nn.Linear(2, 2)(1, 2, 3)

def of_the_harness():
    return preset(7, 7, 7)  # raised here, in the plugin's own line

def in_the_harness():
    return names.METHODS["no such"]

def of_a_file():
    try:
        open("/nowhere/at/all")
    except OSError:
        return None.read()

def of_a_gpu():
    raise RuntimeError("CUDA error: unspecified launch failure")

def of_memory():
    raise IndexError("CUDA out of memory. Tried to allocate 20.00 MiB")

def of_a_value():
    raise ValueError("a broken image")
"""


@pytest.fixture(scope="module")
def plugin() -> Iterator[tuple[Source, Any]]:
    source = Source("my.py", {"my.py": CODE})
    with use(source):
        yield source, __import__(source.module)


def failure(plugin: tuple[Source, Any], name: str, *arguments: object) -> Failure:
    source, module = plugin
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whichever it is
        getattr(module, name)(*arguments)
    assert isinstance(raised.value, Exception)
    return failure_of(raised.value, [source])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("of_python", ["text"], Failure.MISTAKE),
        ("of_a_library", [], Failure.MISTAKE),
        ("of_the_harness", [], Failure.MISTAKE),
        ("in_the_harness", [], Failure.OTHER),
        ("of_a_file", [], Failure.OTHER),
        ("of_a_gpu", [], Failure.OTHER),
        ("of_memory", [], Failure.MEMORY),
        ("of_a_value", [], Failure.OTHER),
    ],
)
def test_a_mistake_of_a_plugin_is_told_from_what_may_pass(
    name: str, arguments: list[object], expected: Failure, plugin: tuple[Source, Any]
) -> None:
    assert failure(plugin, name, *arguments) is expected
    assert expected.is_final == (expected is Failure.MISTAKE)


def test_our_own_mistakes_are_tried_again(plugin: tuple[Source, Any]) -> None:
    with pytest.raises(TypeError) as raised:
        torch.nn.Linear(2, 2)(1, 2, 3)
    assert failure_of(raised.value, [plugin[0]]) is Failure.OTHER
