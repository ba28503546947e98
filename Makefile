# `make` alone lists the targets. `make PYTHON=python3.12 ...` chooses the interpreter for .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
REQUIREMENTS := pyproject.toml constraints.txt

# What `make demo` asks. Any problem of the kind that the built-in pair was trained on will do.
DEMO_PROBLEM ?= Ida fills 28 bags with 4 coins each. Tom gives her 93 more. Ida loses 67 of them. How many coins does Ida have now?
export DEMO_PROBLEM

# The tests of a file stay in one process: they share models that take a while to open.
TEST_PROCESSES ?= --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all dev lint types imports picture pictures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install, then ask the built-in pair of models one problem
	@echo "==> sr-edge ask --no-log \"$$DEMO_PROBLEM\""
	@$(BIN)/sr-edge ask --no-log "$$DEMO_PROBLEM" --usage $$(test -t 2 || echo --spans marks)

test: $(VENV)/.installed-test  ## install what the tests need, then run them all (but for the slow ones)
	@echo "==> running the tests"
	@$(BIN)/python -m pytest $(TEST_PROCESSES)

test-all: $(VENV)/.installed-judges  ## run the slow tests too
	@echo "==> running the tests, the slow ones too"
	@$(BIN)/python -m pytest $(TEST_PROCESSES) -m "not network"

dev: $(VENV)/.installed-dev  ## install what a developer needs
	@echo "==> $(VENV) holds what tests and checks need"

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy --strict on the three packages
	@echo "==> mypy --strict"
	@$(BIN)/mypy --strict

imports: $(VENV)/.installed-dev  ## import-linter: who may import whom
	@echo "==> import-linter"
	@$(BIN)/lint-imports --no-logo

picture: $(VENV)/.installed  ## record docs/ask.svg again: a real run on the built-in pair
	@echo "==> docs/ask.svg"
	@$(BIN)/python docs/picture.py

pictures: $(VENV)/.installed  ## draw docs/chat.svg and docs/chat-span.svg again: a real chat with the built-in pair
	@echo "==> docs/chat.svg docs/chat-span.svg"
	@$(BIN)/python docs/chat_pictures.py

clean:  ## remove builds and caches (.venv stays: delete it by hand to start over)
	@echo "==> removing builds and caches"
	@rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find edge convert train tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: each stamp says what .venv holds, and is renewed when the requirements change ---

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "sr-edge needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "==> making a virtual environment in $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(REQUIREMENTS)
	@echo "==> installing sr-edge"
	@$(announce_llama_cpp)
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created $(REQUIREMENTS)
	@echo "==> installing sr-edge with what its tests need (PyTorch among it: a large download)"
	@$(announce_llama_cpp)
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-judges: $(VENV)/.created $(REQUIREMENTS)
	@echo "==> installing sr-edge with what its tests need, and the judges of its server (a large download)"
	@$(announce_llama_cpp)
	@$(PIP_INSTALL) --editable '.[test,judges]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-dev: $(VENV)/.created $(REQUIREMENTS)
	@echo "==> installing sr-edge with what its tests and checks need (PyTorch among it: a large download)"
	@$(announce_llama_cpp)
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

announce_llama_cpp = test -d "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/llama_cpp" \
    || echo "==> building llama.cpp, about five minutes the first time; it prints nothing meanwhile"
