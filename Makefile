# `make` or `make help` lists the targets. Needs python 3.11+ and make; everything else goes into .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DeepSpeed comes as source, and its setup.py imports from the folder it lies in.
PIP := env -u PYTHONSAFEPATH $(BIN)/python -m pip --disable-pip-version-check --quiet
DATA ?=
MODALITY ?= unknown
# The tests start many processes; each would compile the packages anew.
unexport PYTHONDONTWRITEBYTECODE
# Run from the root, python would find our folder `datasets` before Hugging Face's.
export PYTHONSAFEPATH := 1

.PHONY: help install dev demo test fast durations lint types clean

# A target is listed with the text behind `##` in its line.
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(VENV)/installed ## the package with all its extras, pinned, into .venv

dev: $(VENV)/installed-dev ## the same and what the tests need

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (one to three minutes)"
	$(PIP) install --constraint constraints.txt "setuptools>=77"
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[all]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@touch $@

demo: install ## the whole way on this machine; DATA=folder MODALITY=mr for scans of your own
	$(BIN)/scanfoundry demo $(if $(DATA),--data "$(DATA)" --modality $(MODALITY))

test: dev ## the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --durations 25

fast: dev ## the tests that take no more than some seconds
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not slow and not slurm"

durations: dev ## measure all tests anew, on a quiet machine: which are slow, and which files begin
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --write-durations

lint: dev ## style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy wants the namespace as a folder: link the packages below build/types/scanfoundry.
types: dev ## types, by mypy
	rm -rf build/types && mkdir -p build/types/scanfoundry
	for p in configs backbones datasets pretrain finetune launch; do ln -s ../../../$$p build/types/scanfoundry/$$p; done
	$(BIN)/mypy -p scanfoundry

clean: ## remove .venv, build and what the demo made
	rm -rf $(VENV) build *.egg-info demo
