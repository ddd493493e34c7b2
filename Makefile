# Everything a newcomer needs: `make demo` and `make test` set up their own environment in .venv and then do their job.
PYTHON ?= python3
# Extra arguments for pip, such as --extra-index-url with the index of PyTorch's CPU builds.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Two workers for two cores, one thread each: small matrices gain nothing from more, and threads that share a core lose much.
TEST_WORKERS ?= 2
TORTURE_ARGS ?=
FAULTS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-real test test-real check format zoo sweep bench torture faults clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bluedit needs Python 3.11 or later; say make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[gguf]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed ## write 100 facts into a small model and see the difference BLUE makes
	$(BIN)/bluedit demo

demo-real: $(VENV)/.installed-gguf ## get a real language model, and write a dozen facts into it
	$(BIN)/bluedit demo --real

check: $(VENV)/.installed-dev ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

test: check ## check, then all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS)

test-real: $(VENV)/.installed-dev ## get a real language model, and test on it from end to end
	$(BIN)/bluedit get smollm2-135m-instruct
	OMP_NUM_THREADS=$(TEST_WORKERS) $(BIN)/python -m pytest -s tests/real

format: $(VENV)/.installed-dev ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

zoo: $(VENV)/.installed ## train the embedded model from nothing (about twenty minutes on two cores)
	PYTHONPATH=tools $(BIN)/python -m zoo.train gpt2-mini

sweep: $(VENV)/.installed ## the sweep that chose gpt2-mini's layers and settings
	PYTHONPATH=tools $(BIN)/python benchmarks/sweep_gpt2_mini.py

bench: $(VENV)/.installed ## the benchmarks: against the textbook, and batch after batch
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/session_batches.py

torture: $(VENV)/.installed ## damaged files, kills, full disks, bad inputs: ten minutes; TORTURE_ARGS=--long for all
	PYTHONPATH=tools $(BIN)/python -m torture --workers $(TEST_WORKERS) $(TORTURE_ARGS)
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(BIN)/python -m torture.ledger --kills 10

faults: $(VENV)/.installed-dev ## plant faults in a copy of the source, and see that the tests notice (half an hour)
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(BIN)/python -m faults $(FAULTS_ARGS)

clean: ## remove the environment and all caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
