# The commands of this project. `make up` and `make test` prepare what they need by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

STACK ?= local
PYTEST ?=
# So many stacks are tested at the same time, one for each worker.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Changes when an install is due; a second `make` costs nothing.
READY := $(VENV)/.ready
REQUIREMENTS := requirements/runtime.txt requirements/dev.txt
PYTHON_SOURCES := elsapg tests bench __main__.py

.PHONY: help
help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): $(REQUIREMENTS) pyproject.toml tools/venv
	@tools/venv $(VENV) $(REQUIREMENTS)
	@touch $@

.PHONY: venv
venv: $(READY) ## Make the Python environment

.PHONY: setup
setup: $(READY) ## Install what this machine lacks: Docker, the Go tools, the base image
	@$(BIN)/elsapg setup

.PHONY: up
up: setup ## Deploy a stack (STACK=local)
	@$(BIN)/elsapg up --stack $(STACK) --yes
	@printf '%s\n' '' 'Next, with $(BIN) on your PATH:' \
	  '  elsapg status --stack $(STACK)         what runs, and how it is' \
	  '  elsapg uri elsa_app --stack $(STACK)   how an application connects' \
	  '  elsapg verify --stack $(STACK)         proof that everything holds'

.PHONY: verify
verify: $(READY) ## Verify a running stack (STACK=local)
	@$(BIN)/elsapg verify --stack $(STACK)

.PHONY: destroy
destroy: $(READY) ## Remove a stack, keeping its data (STACK=local)
	@$(BIN)/elsapg destroy --stack $(STACK) --yes

.PHONY: kubernetes
kubernetes: $(READY) ## Build the Kubernetes that the tests run
	@$(BIN)/python -m tests.kubernetes build

# Where it cannot be had, the tests that want it are skipped by name.
.PHONY: test-packages
test-packages:
	@command -v socat >/dev/null || [ "$$(id -u)" != 0 ] || \
	  { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -q -y --no-install-recommends socat; } >/dev/null 2>&1 || true

.PHONY: test
test: setup kubernetes test-packages ## Run all tests
	@$(BIN)/python -m pytest -p tests.spread -n $(WORKERS) --durations 30 --durations-min 10 \
	  tests/kubernetes tests/chaos tests/restore tests/recovery tests/integration tests/sql tests/unit $(PYTEST)

.PHONY: test-kubernetes
test-kubernetes: setup kubernetes ## Run all tests of the kubernetes target
	@$(BIN)/python -m pytest tests/kubernetes $(PYTEST)

.PHONY: test-unit
test-unit: $(READY) ## Run the unit tests: no Docker, no Pulumi engine
	@$(BIN)/python -m pytest tests/unit $(PYTEST)

.PHONY: lint
lint: $(READY) ## Check style, types, imports, SQL and shell
	@$(BIN)/ruff check $(wildcard $(PYTHON_SOURCES))
	@$(BIN)/ruff format --check $(wildcard $(PYTHON_SOURCES))
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports
	@files=$$(find bootstrap_sql -name '*.sql'); \
	  if [ -n "$$files" ]; then $(BIN)/sqlfluff lint -q --disable-progress-bar --dialect postgres $$files; fi
	@$(BIN)/squawk bootstrap_sql/elsa_*/*.sql
	@$(BIN)/shellcheck .ci/run tools/venv images/bin/* tests/kubernetes/node/node.sh

.PHONY: format
format: $(READY) ## Put the Python sources into their one format
	@$(BIN)/ruff check --fix-only -q $(wildcard $(PYTHON_SOURCES))
	@$(BIN)/ruff format $(wildcard $(PYTHON_SOURCES))

.PHONY: bench
bench: setup ## Measure, and record the results in bench/
	@$(BIN)/python -m bench

.PHONY: clean-machine
clean-machine: $(READY) ## Stop the Docker daemon that setup started, if it did
	@$(BIN)/elsapg setup --stop
