# Everything is set up in .venv by the first target that needs it; `make clean` takes it away.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: help demo test check bench aot wheel format clean

help:           ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/ready    ## the main job: MiniLM on real text, before and after; writes addnorm-demo.html
	$(BIN)/addnorm demo --html addnorm-demo.html

test: $(VENV)/ready    ## the test suite
	$(BIN)/python -m pytest

check: $(VENV)/ready   ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_floors.py

bench: $(VENV)/ready   ## the full benchmark; writes benchmarks/results/cpu.json
	$(BIN)/addnorm bench --out benchmarks/results/cpu.json

aot: $(VENV)/ready     ## the GPU kernels for sm_80, sm_90 and sm_100: registers and spills, in docs/gpu-registers.md
	mkdir -p build
	$(BIN)/python -m addnorm.backends.triton.aot > build/gpu-registers.md
	mv build/gpu-registers.md docs/gpu-registers.md

wheel: $(VENV)/ready   ## a wheel for the torch in .venv, in dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

format: $(VENV)/ready  ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:          ## remove what was built
	rm -rf $(VENV) build dist src/*.egg-info src/addnorm/*.so

SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.h' -o -name '*.cpp')

# torch first and pinned: the extension is built for the torch that it finds. torch's CUDA builds bring the Triton
# that they require, its CPU build brings none.
$(VENV)/ready: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --quiet 'triton==3.6.0; sys_platform == "linux"'
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --group dev --editable '.[demo,bench]'
	touch $@
