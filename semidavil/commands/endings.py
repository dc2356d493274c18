"""How every command ends that cannot go on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from semidavil.plugin_files import installed, read
from semidavil.plugins import place_of, use

PLUGIN = (
    "A Python file, or a folder of them, with variants of your own; may be given several times."
)


@contextmanager
def told(console: Console, stopped: str, plugins: Sequence[str] = ()) -> Iterator[None]:
    """Turns what users can mend, and Ctrl-C, into a line and an exit code.

    Args:
        stopped: what is said after Ctrl-C.
        plugins: paths of those that the command uses, beside the installed ones.
    """
    try:
        with use(*installed(), *map(read, plugins)):
            yield
    except Exception as error:
        text, place = str(error), place_of(error)
        if place:  # whoever wrote the plugin looks for the line, and the kind says what to look for
            text = f"{place}: {type(error).__name__}: {error}"
        elif not isinstance(error, ValueError | RuntimeError | OSError):
            raise
        console.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(stopped)
        raise typer.Exit(130) from None
