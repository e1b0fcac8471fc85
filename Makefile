# `make demo` and `make test` need only Python 3.11 or newer: the first call makes .venv, later calls start at once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# One thread per process, or two test processes of two threads each would stand in each other's way on two cores. Numba has to be
# told as well: once scanpy has started it, it sets the threads of torch.
TEST_ENV := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPLBACKEND=Agg WANDB_MODE=offline
PYTEST_ARGS ?= --numprocesses 2 --dist worksteal --cov --cov-report term:skip-covered

# The tutorials read the olfactory bulb and a slide from here, and show a synthetic cohort where they are absent.
STEXPR_DATA ?= $(firstword $(wildcard $(CURDIR)/../shared/data) $(CURDIR)/raw)

.PHONY: demo test docs bench bench-gpu lint clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo    install stexpr into $(VENV) and run 'stexpr demo' (a few minutes, most of it the installation)"
	@echo "make test    install it with its test tools, then lint, check types and run all tests with coverage"
	@echo "make docs    install what builds the documentation, run the tutorials and write docs/build/html (some minutes)"
	@echo "make bench-gpu  the speed table and the ten-backbone sweep on a GPU, over the prepared cohorts in cohorts/"
	@echo "make bench   measure all paths of benchmarks/speed again, one after the other, and write their tables (about half an hour)"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   remove what builds, tests and the demo left; $(VENV) stays"

demo: $(VENV)/.installed
	$(BIN)/stexpr demo

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	$(TEST_ENV) STEXPR_DATA=$(STEXPR_DATA) STEXPR_WORK=$(CURDIR)/docs/build/work \
		$(BIN)/python -m sphinx -W --keep-going -d docs/build/doctrees docs docs/build/html
	@echo "open docs/build/html/index.html in a browser"

# Where there is a GPU; the machine's own Python will do if it has torch and timm: make bench-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
GPU_OUT ?= benchmarks/results

bench-gpu:
	PYTHONPATH=$(CURDIR) $(GPU_PYTHON) benchmarks/gpu.py cohorts $(GPU_OUT)

# comparison.py is what the others share. One thread and one script at a time: they measure processor time.
bench: $(VENV)/.installed-test
	status=0; for script in $(filter-out %/comparison.py,$(wildcard benchmarks/speed/*.py)); do \
		echo "$$script"; $(BIN)/python $$script || status=1; done; \
		$(BIN)/python benchmarks/tables.py && exit $$status

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist docs/build docs/gallery *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.* stexpr-demo
	find stexpr tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stexpr needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch and torchvision come in one resolve: installed one after the other they may not fit (operator torchvision::nms).
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing stexpr into $(VENV), some minutes the first time"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing stexpr and its test tools into $(VENV), some minutes the first time"
	$(PIP) --editable '.[test,dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	@echo "installing stexpr and what builds its documentation into $(VENV), some minutes the first time"
	$(PIP) --editable '.[docs]'
	@touch $(VENV)/.installed $@
