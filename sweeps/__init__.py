"""Plans grids of runs, runs them with Ray Tune and tracks them with MLflow.

Ray and MLflow read these variables when they are imported, and importing any module of this package
comes first. They keep both from calling home, from printing over our own progress, and Ray from
moving workers into folders of their own, where relative paths would scatter files. A variable that
is already set wins.

MLflow itself would try a server that is away for four minutes, in silence: every wait is a
`sweeps.track.retry.Patience`'s.
"""

import os

QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds without a word
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial without a GPU sees none, rather than all of them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Each run trains in a new thread of its worker, and glibc keeps an arena of memory for each thread:
    # a worker grew from 1.2 to 4.5 GB over 24 toy runs. Read when a process starts, so by workers alone.
    "MALLOC_ARENA_MAX": "1",
}
for _name, _value in QUIET_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
