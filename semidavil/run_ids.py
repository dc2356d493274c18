"""The runs that somebody names on a command line."""

LETTERS = 4  # of a run's id that may name it


def is_named(run_id: str, text: str) -> bool:
    """Whether `text` is the id of this run in MLflow, or begins it and is no less than `LETTERS` long."""
    return len(text) >= LETTERS and run_id.startswith(text)
