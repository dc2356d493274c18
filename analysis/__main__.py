"""`python -m analysis`: figures, tables and report of the tracked runs."""

from analysis.make_figures import app

if __name__ == "__main__":
    app(prog_name="python -m analysis")
