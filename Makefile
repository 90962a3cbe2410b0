# Each target works right after cloning, with nothing but make and Python 3.11, 3.12 or 3.13, and
# writes only inside this folder.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# The last release of ONNX Runtime's training package: the oldest runtime that is supported, and
# what portable=False is built with. It installs the same module as onnxruntime.
TRAINING := .venv-training
ifeq ($(shell $(PYTHON) -c 'import sys; print(sys.version_info < (3, 13))'),True)
TRAINING_STAMP := $(TRAINING)/test.stamp
endif
# What the benchmark compares with, each in an environment of its own: .venv-peers/optax and so on.
PEERS := $(patsubst tools/bench/peers/%.txt,.venv-peers/%,$(wildcard tools/bench/peers/*.txt))
# Flower holds back packages that the tests want new, so it has an environment of its own.
FLOWER := .venv-flower
FLOWER_RUNTIME := $(if $(TRAINING_STAMP),training-cpu,runtime)
# What makes the site of docs/.
DOCS := .venv-docs
CACHE := $(CURDIR)/.cache
# Networks that nobody here wrote, and the PyTorch that they need.
FIELD := .venv-field
# Installing compiles them, if there is a compiler.
KERNELS := $(wildcard graphopt/kernels/*.[ch])

export TMPDIR := $(CACHE)/tmp
export XDG_CACHE_HOME := $(CACHE)
export MPLCONFIGDIR := $(CACHE)/matplotlib
export MPLBACKEND := agg
# What Flower keeps stays here, and nothing is told to its makers.
export FLWR_HOME := $(CACHE)/flower
export FLWR_TELEMETRY_ENABLED := 0
# Whoever forbids compiled modules elsewhere pays for them here, once a process.
export PYTHONDONTWRITEBYTECODE :=
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests run on all cores already; PyTorch's threads would only wait for each other.
test exhaustive quick: export OMP_NUM_THREADS := 1
test exhaustive quick: export GRAPHOPT_OTHER_PYTHON := $(CURDIR)/$(TRAINING)/bin/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test exhaustive quick check docs journeys bench field federated format clean
$(shell mkdir -p $(TMPDIR))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/demo.stamp ## train the digits network; results in build/demo/
	$(BIN)/python -m tools.demo

test: $(VENV)/test.stamp $(TRAINING_STAMP) ## run the tests, on today's ONNX Runtime and on 1.19
	@failed=0; \
	$(BIN)/python -m pytest -n auto --dist worksteal || failed=1; \
	$(if $(TRAINING_STAMP),$(TRAINING)/bin/python -m pytest -n auto --dist worksteal -m 'not any_runtime' || failed=1, \
	echo 'NOT RUN: the tests on ONNX Runtime 1.19, whose training package is not for this Python'); \
	exit $$failed

# What is like other cases, or takes long, waits until here; so do the tests with Flower.
exhaustive: $(VENV)/test.stamp $(TRAINING_STAMP) $(FLOWER)/flower.stamp ## run the tests that make test leaves out
	@failed=0; \
	$(BIN)/python -m pytest --exhaustive -m exhaustive -n auto --dist worksteal || failed=1; \
	$(if $(TRAINING_STAMP),$(TRAINING)/bin/python -m pytest --exhaustive -m 'exhaustive and not any_runtime' \
	-n auto --dist worksteal || failed=1;) \
	$(FLOWER)/bin/python -m pytest --exhaustive tests/federated || failed=1; \
	exit $$failed

quick: $(VENV)/test.stamp ## run a test of each kind, in less than a minute
	$(BIN)/python -m pytest --quick -n auto --maxprocesses 4

check: $(VENV)/test.stamp ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(DOCS)/docs.stamp ## make the site of docs/ in build/site/; a link that leads nowhere is an error
	$(DOCS)/bin/python -m sphinx --quiet --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/site
	@! grep -rlE '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//' build/site --include='*.html' || \
	{ echo 'these pages load something from a network'; exit 1; }
	@echo 'the documentation is in build/site/index.html'

journeys: $(VENV)/test.stamp ## play what new users do, from an empty folder, with the wheel
	$(BIN)/python -m tests.journeys

bench: $(VENV)/test.stamp $(TRAINING_STAMP) $(PEERS:=/peer.stamp) ## measure; results in bench/
	$(BIN)/python -m tools.bench

field: $(FIELD)/field.stamp ## train networks from elsewhere beside PyTorch; results in bench/ and docs/networks.md
	OMP_NUM_THREADS=1 $(FIELD)/bin/python -m tools.field
	OMP_NUM_THREADS=1 $(FIELD)/bin/python -m tools.field.files
	$(FIELD)/bin/python -m tools.field.report

federated: $(FLOWER)/simulation.stamp ## simulate federated training with Flower; results in bench/ and docs/federated.md
	$(FLOWER)/bin/python -m tools.federated

format: $(VENV)/test.stamp ## format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove everything that make created
	rm -rf $(VENV) $(TRAINING) $(FIELD) $(DOCS) $(FLOWER) .venv-peers .cache .hypothesis build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f graphopt/kernels/_kernels*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp's name is the extra: demo.stamp installs `demo`, test.stamp installs `test`.
$(VENV)/%.stamp: pyproject.toml $(KERNELS) | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --editable '.[runtime,$*]'
	@touch $@

$(TRAINING)/%.stamp: pyproject.toml $(KERNELS) | $(TRAINING)/pyvenv.cfg
	$(TRAINING)/bin/python -m pip install --quiet --editable '.[training-cpu,$*]'
	@touch $@

$(DOCS)/docs.stamp: pyproject.toml $(KERNELS) | $(DOCS)/pyvenv.cfg
	$(DOCS)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(FLOWER)/flower.stamp: pyproject.toml $(KERNELS) | $(FLOWER)/pyvenv.cfg
	$(FLOWER)/bin/python -m pip install --quiet --editable '.[$(FLOWER_RUNTIME),flower]' 'pytest>=8.3'
	@touch $@

$(FLOWER)/simulation.stamp: $(FLOWER)/flower.stamp
	$(FLOWER)/bin/python -m pip install --quiet --editable '.[training-cpu,flower,demo]' 'flwr[simulation]>=1.42'
	@touch $@

$(FIELD)/field.stamp: pyproject.toml tools/field/requirements.txt $(KERNELS) | $(FIELD)/pyvenv.cfg
	$(FIELD)/bin/python -m pip install --quiet --requirement tools/field/requirements.txt --editable '.[runtime,torch]'
	@touch $@

# A peer that cannot be installed here is left out of the benchmark.
$(PEERS:=/peer.stamp): .venv-peers/%/peer.stamp: tools/bench/peers/%.txt | .venv-peers/%/pyvenv.cfg
	@if .venv-peers/$*/bin/python -m pip install --quiet --requirement $<; then touch $@; \
	else echo 'left out of the benchmark: $* could not be installed'; rm -rf .venv-peers/$*; fi

$(VENV)/pyvenv.cfg $(TRAINING)/pyvenv.cfg $(FIELD)/pyvenv.cfg $(FLOWER)/pyvenv.cfg $(DOCS)/pyvenv.cfg $(PEERS:=/pyvenv.cfg): %/pyvenv.cfg:
	$(PYTHON) -m venv $*
