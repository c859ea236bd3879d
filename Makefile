# Two commands from a fresh clone: `make matrix` and `make test`. Both set up .venv first.

# The first interpreter that runs and is one we support.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 \
	&& echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := ci/constraints.txt
INSTALLED := $(VENV)/.installed
# One worker for each processor this process may use; each computes with one thread.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
# Torch's threads are samebits' to set; those of the libraries below numpy are not, once it is imported.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
# Hundreds of processes are started, each of which would compile samebits and all that pytest rewrites once more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: matrix suites test nightly lint format clean

matrix: $(INSTALLED)  ## Run the main job on what this machine has, and print the table.
	$(BIN)/pytest -m batch_invariant -n $(WORKERS) -q $(PYTEST_ARGS)

suites: $(INSTALLED)  ## Run the other suites.
	$(BIN)/pytest -m "not batch_invariant" -n $(WORKERS) -q $(PYTEST_ARGS)

test: $(INSTALLED)  ## Run the project's own tests.
	$(BIN)/pytest tests -n $(WORKERS) -q $(PYTEST_ARGS)

nightly: $(INSTALLED)  ## Run what of the project's own tests takes too long for every change.
	SAMEBITS_KILLS=50 SAMEBITS_FUZZ_INPUTS=100000 $(BIN)/pytest tests/test_killed_runs.py tests/test_fuzz.py -n $(WORKERS) -q $(PYTEST_ARGS)

lint: $(INSTALLED)  ## Check format, style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=ci/.typing $(BIN)/mypy ci/.typing/samebits tests

format: $(INSTALLED)  ## Format, and mend what can be mended.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "samebits needs Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	# torch by its exact version before anything else, so that nothing drags in another build of it.
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch setuptools wheel
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[aiter,dev]'
	touch $@

clean:  ## Remove the environment and the results.
	rm -rf $(VENV) reports/out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
