"""How every command ends that cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape


@contextmanager
def told(console: Console, stopped: str) -> Iterator[None]:
    """Turns what users can mend, and Ctrl-C, into a line and an exit code.

    Args:
        stopped: what is said after Ctrl-C.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print(stopped)
        raise typer.Exit(130) from None
