# Two commands do everything, set-up included: make demo, make test.
VENV   ?= .venv
PYTHON ?= python3
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin

.PHONY: demo test check bench clean

demo: $(READY)  ## train a small ViT sparse on real digits, beside its dense twin (about two minutes)
	$(BIN)/hf-srigl demo

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest -n 2

check: $(READY)  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY)  ## memory, file size and update time, written to benchmarks/results/
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) build dist

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)
