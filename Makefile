# `make demo` and `make test` do all the set-up themselves, into .venv.
PYTHON ?= python3
BIN := .venv/bin
# As many processes as tests/conftest.py says, four at most: many tests start several of their own. The files of
# which most is slow come first, and a file's tests share what is slow to make.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
# Where it is set, every process of the tests compiles the package and the tests anew: seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check lint docs clean

demo: setup
	$(BIN)/python sweeps/run.py --grid attention
	$(BIN)/python analysis/make_figures.py

test: setup lint
	$(PYTEST)

check: setup lint
	$(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in build/site, with every link and anchor checked.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

setup: .venv/installed

.venv/docs: .venv/installed
	$(BIN)/pip install --editable '.[docs]'
	touch .venv/docs

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable '.[dev]'
	touch .venv/installed

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
