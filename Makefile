# `make demo` and `make test` do all the set-up themselves, into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint clean

demo: setup
	$(BIN)/python sweeps/run.py --grid attention
	$(BIN)/python analysis/make_figures.py

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable '.[dev]'
	touch .venv/installed

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
