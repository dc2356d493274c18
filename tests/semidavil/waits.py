"""Finds what would make a training step wait for the device: values read back, shapes that depend on data."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = str(Path(__file__).parents[2] / "semidavil")
TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
READ_BY_PYTHON = {  # which on a CPU asks no operator
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.cpu,
    torch.Tensor.__array__,
}
BY_MASK = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


@contextmanager
def no_waits() -> Iterator[list[str]]:
    """Collects "operator at file:line" of everything within that waits; also in backward passes."""
    found: list[str] = []
    with _Python(found), _Operators(found):
        yield found


class _Python(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in READ_BY_PYTHON or (func is torch.Tensor.to and "cpu" in args[1:]):
            self.found.append(f"{func.__name__} at {_place()}")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if waits(func, args):
            self.found.append(f"{func.name()} at {_place()}")
        return func(*args, **(kwargs or {}))


def waits(operator: Any, args: tuple) -> bool:
    """Whether an operator with these arguments reads the device, or has a size that its data decide."""
    if operator.overloadpacket._qualified_op_name in BY_MASK:
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return bool(TAGS & set(operator.tags))


def _place() -> str:
    """The innermost line of the package, or, in a backward pass without one, of the caller."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__]
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)] or [
        frame for frame in frames if "site-packages" not in frame.filename
    ]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}: {(ours[-1].line or '')[:100]}"
