# `make help` lists the targets. Python 3.11+ and make are needed; everything else goes into .venv, pinned by
# constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DeepSpeed comes as source, and its setup.py imports from the folder it lies in.
PIP := env -u PYTHONSAFEPATH $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup
DATA ?=
MODALITY ?= unknown
# The tests start many processes; each would compile the packages anew.
unexport PYTHONDONTWRITEBYTECODE
# Run from the root, python would find our folder `datasets` before Hugging Face's.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help install dev demo payoff test fast durations docs coverage lint types house clean

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)$$/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; do printf 'make %-9s %s\n' "$$name" "$$what"; done

install: $(VENV)/installed ## the package with all its extras, pinned, into .venv

dev: $(VENV)/installed-dev ## what tests and checks need too

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

demo: install ## the whole way on synthetic scans, or on DATA=folder MODALITY=mr
	$(BIN)/scanfoundry demo $(if $(DATA),--data "$(DATA)" --modality $(MODALITY))

payoff: install ## does pre-training pay? DATA=folder of data sets, WORK=folder [BUDGET=2h]; days on two cores
	env -u PYTHONSAFEPATH $(BIN)/python benchmarks/payoff.py "$(DATA)" "$(WORK)" $(if $(BUDGET),--budget $(BUDGET))

test: dev ## the whole test suite
	$(PYTEST) --durations 25

fast: dev ## the tests that take seconds
	$(PYTEST) -m "not slow and not slurm"

durations: dev ## measure all tests anew, on a quiet machine: which are slow, and which files begin
	$(PYTEST) --write-durations

docs: dev ## run the commands of README and docs; check their sentences, links and paths
	$(BIN)/python -m pytest tests/docs

# Children (ranks, workers, command lines) are measured too. From Python 3.12 on, sys.monitoring makes it cheap; before,
# expect up to twice the time.
coverage: export COVERAGE_CORE := sysmon
coverage: export COVERAGE_FILE := $(CURDIR)/build/coverage/data
coverage: dev ## the test suite with coverage: a table, and build/coverage/index.html
	mkdir -p build/coverage
	$(PYTEST) --cov --cov-report=
	-$(BIN)/coverage combine --append --quiet # of children that ended after pytest had combined the others
	$(BIN)/coverage report --skip-covered
	$(BIN)/coverage html --quiet

lint: dev ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy wants the namespace as a folder: link the packages below build/types/scanfoundry.
types: dev ## mypy
	rm -rf build/types && mkdir -p build/types/scanfoundry
	for p in configs backbones datasets pretrain finetune launch; do ln -s ../../../$$p build/types/scanfoundry/$$p; done
	$(BIN)/mypy -p scanfoundry

house: ## sizes of files and functions, circles of imports, annotations
	$(PYTHON) benchmarks/house.py

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build *.egg-info demo
