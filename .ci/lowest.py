"""Prints the oldest MLflow, Ray and Optuna that pyproject.toml admits, for pip."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PARTS = {
    "mlflow": ("mlflow", "mlflow-skinny", "mlflow-tracing"),
    "ray": ("ray",),
    "optuna": ("optuna",),
}

for requirement in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]:
    name, bound = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement).groups()
    for part in PARTS.get(name, ()):
        print(f"{part}=={bound}")
