"""`python -m analysis`: figures, tables and report of the tracked runs."""

import typer

from analysis.make_figures import main

if __name__ == "__main__":
    typer.run(main)
