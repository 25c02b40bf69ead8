# Both main targets do everything on a fresh machine: make the environment, install, run.
PYTHON ?= python3
BIN := .venv/bin
QUIET := --quiet --disable-pip-version-check
# Tests start many processes, which would compile the package every time if this were set.
export PYTHONDONTWRITEBYTECODE :=
HOOKED := tests/models tests/circuits tests/exchange tests/training/test_interventions.py tests/test_mistakes.py

.PHONY: run test test-all test-tl4 lint docs notebooks bench clean

run: .venv/installed  ## the main job: train, measure, locate the induction head, write the report
	$(BIN)/mechinterp run --preset reddy2023-fast --out checkpoints/reddy2023-fast-0.h5 --overwrite

test: .venv/installed-dev  ## two files at a time, each on one thread; without the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: .venv/installed-dev  ## with the slow tests, and annotations of types checked in every call
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --all-types

test-tl4: .venv-tl4/installed  ## what touches the hooked view, with TransformerLens 4 in an environment of its own
	OMP_NUM_THREADS=1 .venv-tl4/bin/pytest -n 2 --dist loadfile -m "not slow" $(HOOKED)

lint: .venv/installed-dev  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: .venv/installed-dev  ## the documentation, in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build -W -q docs docs/_build/html

notebooks: .venv/installed-dev  ## notebooks/*.ipynb of the scripts
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py

bench: .venv/installed  ## what is fast, as ratios of interleaved runs, beside the kept ones
	$(BIN)/python -m benchmarks

.venv/installed: pyproject.toml constraints.txt hashes.txt  ## what is used: packages by their hashes, then torch
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(QUIET) --require-hashes --no-deps -r hashes.txt
	$(BIN)/pip install $(QUIET) -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed hashes-dev.txt  ## what tests, style and documentation need besides
	$(BIN)/pip install $(QUIET) --require-hashes --no-deps -r hashes-dev.txt
	$(BIN)/pip install $(QUIET) -c constraints.txt -e '.[dev]'
	touch $@

.venv-tl4/installed: pyproject.toml constraints.txt hashes.txt hashes-dev.txt constraints-tl4.txt  ## TransformerLens 4
	$(PYTHON) -m venv .venv-tl4
	.venv-tl4/bin/pip install $(QUIET) --require-hashes --no-deps -r hashes.txt -r hashes-dev.txt
	.venv-tl4/bin/pip install $(QUIET) -c constraints.txt -e '.[dev]'
	.venv-tl4/bin/pip install $(QUIET) --no-deps -r constraints-tl4.txt
	touch $@

clean:
	rm -rf .venv .venv-tl4
