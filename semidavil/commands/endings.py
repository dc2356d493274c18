"""How every command ends that cannot go on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from semidavil.plugins import installed, read, use

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
    except (ValueError, RuntimeError, OSError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(stopped)
        raise typer.Exit(130) from None
