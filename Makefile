# The commands of a new user. Each does its whole set-up: virtual environment, install, run.
#
#   make demo            train the linear-decoder VAE on real digits; table, picture and JSON in results/
#   make demo SMOKE=1    the same in seconds, tiny, to see that it runs
#   make test            format, lint, types, doctests, tests
#   make lint            format, lint, types
#   make bench           the speed and memory benchmarks; report in results/benchmarks.md
#   make bench SMOKE=1   the same in a minute, tiny, judging no target; PEERS=1 adds the other libraries
#   make clean           remove the environment, caches and results
#
# PYTHON=python3.12 chooses the interpreter (3.10 or newer), ARGS="..." is passed on to the program.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.examples-installed
	$(BIN)/python examples/vae.py $(if $(SMOKE),--smoke-test) $(ARGS)

# One torch thread per worker: the workers are the parallelism.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.examples-installed $(if $(PEERS),$(VENV)/.peers-installed)
	$(BIN)/python examples/benchmarks/harness/suite.py $(if $(SMOKE),--smoke-test) $(ARGS)

clean:
	rm -rf $(VENV) build dist results *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed; choose one with: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch by itself and first: named alone, the pinned release is taken from wherever pip is set up to find it.
$(VENV)/.torch-installed: constraints.txt | $(BIN)/python
	$(PIP) torch
	@touch $@

$(VENV)/.examples-installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	$(PIP) -e ".[examples]"
	@touch $@

$(VENV)/.peers-installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	$(PIP) -e ".[examples,peers]"
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	$(PIP) -e ".[test]"
	@touch $@
