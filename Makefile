# `make` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup demo bench test test-slow lint format clean distclean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
# Versions tried first; 3.11 is the one the constraints were taken from.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.10 python3)
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# pip with one line for each download; its whole output is in .venv/pip.log, its end is shown if it fails.
define pip_install
	@echo "==> $(1)"
	@$(BIN)/python -m pip --disable-pip-version-check install --progress-bar off $(2) 2>&1 \
	  | tee $(VENV)/pip.log \
	  | sed -un -e 's/^ *\(Downloading\|Using cached\) \([^ ]*\) (\(.*\))$$/    \2 (\3)/p' \
	            -e 's/^Installing collected packages.*/    installing .../p' \
	  || { grep -v '^WARNING: Location' $(VENV)/pip.log | tail -n 30; \
	       echo "error: pip failed, see above; all it said is in $(VENV)/pip.log"; exit 1; }
endef

help:
	@echo "make demo        train and evaluate on real mammograms with simulated lesions (20 minutes on 2 cores)"
	@echo "make bench       measure operator, model, loader and engine, beside others, into benchmarks/ (30 minutes on 2 cores)"
	@echo "make test        the tests; make test-slow runs the long ones"
	@echo "make lint        ruff check and format check; make format repairs"
	@echo "make setup       only the environment in $(VENV) (PYTHON=python3.12 picks the Python)"
	@echo "make clean       remove caches and builds; make distclean the environment, too"

setup: $(VENV)/.detectron2.done

# Each step leaves a file behind when it has succeeded, so nothing is installed twice.
$(VENV)/.venv.done:
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	    echo "==> making $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV); touch $@; exit 0; \
	  fi; \
	done; \
	echo "error: no Python 3.10, 3.11 or 3.12 with venv found (tried: $(PYTHONS)):" \
	  "install one (Debian: python3 and python3-venv), or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2

$(VENV)/.torch.done: $(VENV)/.venv.done constraints.txt
	$(call pip_install,[1/3] torch and torchvision: about 3 GB to download,-c constraints.txt torch torchvision)
	@touch $@

$(VENV)/.package.done: $(VENV)/.torch.done setup.py pyproject.toml
	$(call pip_install,[2/3] detrex_mammo with what it needs and its test tools,-c constraints.txt -e '.[dev]')
	@touch $@

$(VENV)/.detectron2.done: $(VENV)/.package.done tools/install_detectron2.py
	@echo "==> [3/3] detectron2"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python tools/install_detectron2.py
	@touch $@

demo: setup
	@$(BIN)/python tools/demo.py

bench: setup
	@for mode in op inference train data engine; do $(BIN)/python tools/benchmark.py $$mode; done
	@$(BIN)/python tools/benchmark.py table

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Results in output/ are yours: nothing here removes them.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
