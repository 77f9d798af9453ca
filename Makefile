# make demo [DATA=folder MODALITY=mr]   the whole way on this machine
# make test                             the whole test suite
# make fast                             its quick tests
# Needs python 3.11+ and make; everything else goes into .venv, pinned by constraints.txt.
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

.PHONY: install dev demo test fast durations lint types schemas clean

install: $(VENV)/installed

dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (one to three minutes)"
	$(PIP) install --constraint constraints.txt "setuptools>=77"
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/scanfoundry demo $(if $(DATA),--data "$(DATA)" --modality $(MODALITY))

test: dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --durations 25

fast: dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not slow and not slurm"

# Which tests are slow, and which begin: on a machine that does nothing else.
durations: dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --write-durations

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy wants the namespace as a folder: link the packages below build/types/scanfoundry.
types: dev
	rm -rf build/types && mkdir -p build/types/scanfoundry
	for p in configs backbones datasets pretrain finetune launch; do ln -s ../../../$$p build/types/scanfoundry/$$p; done
	$(BIN)/mypy -p scanfoundry

clean:
	rm -rf $(VENV) build *.egg-info demo
