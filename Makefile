# `make demo` and `make test` are all the set-up there is: a machine needs Python 3.11 or later (with venv) and make.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEEDS := import sys; sys.exit(sys.version_info < (3, 11))
# The first that runs and is new enough; `make PYTHON=/path/to/python3.11 test` chooses another.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c '$(NEEDS)' >/dev/null 2>&1 && echo "$$name" && break; done)

.PHONY: help setup demo test check lint types format docs zoo bench dist clean

help:  ## What there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## The environment in .venv, with every extra, at the versions of constraints.txt

demo: $(READY)  ## Train, convert, compress, evaluate and time small networks on handwritten digits; one table
	@$(BIN)/python -m bench.demo

# Files run side by side, for a test waits for other processes most of the time; each worker may take 3 GB.
# What the clock judges comes first, with nothing beside it.
test: $(READY)  ## The tests; those that cannot run here say why
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m "not alone" -n auto --maxprocesses 4 --dist loadfile

check: lint types test  ## All that a reviewer would check: format, lint, imports, types, tests

lint: $(READY)  ## Format, lint and the import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(READY)  ## mypy (strict) and pyright
	$(BIN)/mypy
	$(BIN)/pyright

format: $(READY)  ## Rewrite the sources in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## Write docs/cli.md, docs/devices.md, docs/tflite.md and docs/keras.md from what they tell of
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_devices.py
	$(BIN)/python docs/make_tflite.py
	$(BIN)/python docs/make_keras.py

zoo: $(READY)  ## Fetch and convert the real models into the cache (360 MB)
	$(BIN)/python -m bench.zoo

bench: zoo  ## edgerun beside its peers on the real models; writes bench/results
	$(BIN)/python -m bench.compare_peers

dist: $(READY)  ## Wheel and source archive in dist/, and the wheel for a device
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m bench.device_wheel dist

clean:  ## Remove what was made here; the cache of real models stays
	rm -rf $(VENV) build dist demo-out edgerun.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "edgerun needs Python 3.11 or later, and none was found." >&2; \
			echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
			exit 1; \
		fi; \
		echo "making $(VENV) with $(PYTHON)"; \
		"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@$(BIN)/python -c '$(NEEDS)' || { \
		echo "$(VENV) holds a Python older than 3.11: remove it (make clean), then try again." >&2; exit 1; }
	@echo "installing edgerun[all,dev] and its frameworks into $(VENV): a few minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@
