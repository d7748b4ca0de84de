# make setup | demo | test | test-all | test-oldest | docs | lint | format | pocket | clean      (each sets itself up first)
#
#   TORCH_SPEC   which torch, e.g. TORCH_SPEC="torch==2.13.0+cpu"
#   PIP_ARGS     handed to every pip install, e.g. PIP_ARGS="--extra-index-url ADDRESS" for another build of torch
#   PYTHON       the interpreter the environment is made with (3.11 or later)
#   PYTEST_ARGS  handed to pytest, e.g. PYTEST_ARGS="tests/test_cli.py -x"

# The first that runs and is new enough: a name on the PATH may be a shim for a version that is not there.
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c '$(ENOUGH)' 2>/dev/null && { echo "$$p"; break; }; done)
TORCH_SPEC ?= torch==2.13.0
PIP_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.diffulm-installed

.PHONY: setup demo test test-all test-oldest docs lint format pocket clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# torch first, so that the user's choice of it stands when the package asks for "torch". constraints.txt leaves it out for
# the same reason.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(ENOUGH)' 2>/dev/null || { echo >&2 \
		"diffulm needs Python 3.11 or later, and $(if $(PYTHON),$(PYTHON) is not one that runs here,none is on the PATH); name one: make PYTHON=..."; exit 1; }
	@echo "Setting up $(VENV), once: some minutes and 2 GB, or 6 GB with a torch for CUDA."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt "$(TORCH_SPEC)"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt -e ".[all]"
	@touch $@

demo: setup
	$(BIN)/diffulm demo

test: setup
	$(BIN)/python -m pytest -q -m "not slow" $(PYTEST_ARGS)

test-all: setup test-oldest
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

# The matrix of decoder families once more, on the oldest transformers that the package supports, in an environment of its own.
# Its warnings are not errors: they speak of versions that have come since.
OLDEST := .venv-oldest
OLDEST_SPEC := transformers==5.4.0 huggingface_hub==1.5.0
test-oldest: $(OLDEST)/.diffulm-installed
	$(OLDEST)/bin/python -m pytest -q -W default tests/test_families.py

$(OLDEST)/.diffulm-installed: pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) "$(TORCH_SPEC)"
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[dev]" $(OLDEST_SPEC)
	@touch $@

# The site of the documentation, into build/site. To read it with its search: python -m http.server -d build/site
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Trains the two models that are shipped as package data, from nothing: about two hours of one core. Resumes where it stopped.
POCKET := data=build/pocket/train.jsonl.gz eval_data=build/pocket/heldout.jsonl.gz
pocket: setup
	$(BIN)/python -m diffulm.recipes.pocket prepare build/pocket
	$(BIN)/diffulm adapt pocket-ar model=build/pocket/parent $(POCKET) out=runs/pocket-ar
	$(BIN)/diffulm adapt pocket model=runs/pocket-ar $(POCKET) out=runs/pocket
	$(BIN)/python -m diffulm.recipes.pocket ship runs/pocket-ar runs/pocket

clean:
	rm -rf $(VENV) $(OLDEST) dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
