"""Why a training has failed, as far as it matters for trying it again.

Judged by the names of errors, so that no training code is imported.
"""

import traceback
from collections.abc import Iterable, Iterator

from semidavil.plugin_files import Source
from sweeps.run.events import Failure

INPUT_ERRORS = (
    "DataError", "VLMError", "CaptionError", "ConfigError", "DeviceError", "DiskFull", "PluginError",
)  # fmt: skip
# What Python says of code that is wrong: a run, whose draws depend on its seed alone, comes to it again.
# RuntimeError and ValueError are none: GPUs and files that are away for a moment raise them as well.
MISTAKES = (
    TypeError, AttributeError, NameError, LookupError, ArithmeticError, AssertionError, NotImplementedError
)  # fmt: skip
PASSING = (OSError, MemoryError, EOFError)
HARNESS = ("semidavil", "sweeps")


def is_input_error(error: Exception) -> bool:
    """Whether an error of `prepare` is of the input, such as a missing data set, and not of the code."""
    return type(error).__name__ in INPUT_ERRORS or isinstance(error, FileNotFoundError)


def failure_of(error: Exception, plugins: Iterable[Source] = ()) -> Failure:
    """What kind of failure an error of the training is, which uses these plugins."""
    name = type(error).__name__
    if name in ("NonFiniteLossError", "UndefinedScoreError"):
        return Failure.DIVERGED
    if name == "OtherDataError":
        return Failure.OTHER_DATA
    if _is_of_memory(error):
        return Failure.MEMORY
    if name in INPUT_ERRORS:
        return Failure.INPUT
    return Failure.MISTAKE if _is_mistake(error, plugins) else Failure.OTHER


def _is_of_memory(error: BaseException) -> bool:
    known = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return known or "out of memory" in str(error).lower()


def _is_mistake(error: BaseException, plugins: Iterable[Source]) -> bool:
    """Whether the code of a plugin is wrong, so that it fails in the same way again.

    What a plugin calls may have raised the error, as PyTorch does for wrong arguments, but not the harness:
    its own mistakes, and errors that follow from others that may pass, are worth another try.
    """
    causes = list(_behind(error))
    if not isinstance(error, MISTAKES) or any(
        isinstance(one, PASSING) or _is_of_memory(one) for one in causes
    ):
        return False
    modules = {source.module for source in plugins}
    frames = traceback.walk_tb(error.__traceback__)
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
    last = [name for name in packages if name in modules or name in HARNESS][-1:]
    return bool(modules.intersection(last))


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The errors that one follows from."""
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause
