"""Bars of what is slow, for people who sit at a terminal."""

from rich import get_console
from rich.console import Console
from rich.progress import Progress


def transient_bars(shown: bool = True, console: Console | None = None) -> Progress:
    """Bars that are gone when all is done.

    None where the output is no terminal, in which they would leave empty lines.
    """
    console = console or get_console()
    return Progress(console=console, disable=not (shown and console.is_terminal), transient=True)
