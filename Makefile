# Roomkey. Every target sets up what it needs first (deploy/setup); a second run starts at once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PY := .venv/bin/python3
VECTORS ?= ../shared/vectors
CODE := agent broker keys tests demo bench fuzz deploy
# Every branch of these rooms must be covered: they decide what is genuine, what is wanted, and what is released.
COVERED := keys/*,agent/luks*.py,broker/verifiers/*,broker/appraisal/*,broker/measure/*,broker/release.py,broker/attestation.py,broker/evidence.py,broker/replay.py,broker/session.py

.PHONY: help setup demo boot-demo boot-demo-full test test-slow lint fmt conformance cover bench fuzz lock clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## system packages and .venv
	@deploy/setup

demo: setup ## a measured guest unlocks its disk; a tampered one does not
	@$(PY) -m demo

boot-demo: setup ## a measured VM unlocks its own disk; ones that were tampered with do not
	@deploy/boot/setup
	@$(PY) -m deploy.boot

boot-demo-full: setup ## a whole Debian whose root is on LUKS2, with the agent's package; minutes, as root
	@deploy/boot/setup full
	@$(PY) -m deploy.boot.full

test: setup ## all fast tests, and the shared vectors where they are
	@$(PY) -m pytest -q -m "not slow" $(ARGS)
	@if [ -d "$(VECTORS)" ]; then $(PY) -m tests.conformance "$(VECTORS)"; fi

test-slow: setup ## the long ones: kill -9 in a loop, long fuzzing
	@$(PY) -m pytest -q -m slow $(ARGS)

conformance: setup ## the verifiers against recorded evidence: VECTORS=DIR
	@$(PY) -m tests.conformance "$(VECTORS)"

cover: setup ## tests under coverage; the deciding rooms must be at 100 % of branches
	@$(PY) -m coverage erase
	@$(PY) -m coverage run -m pytest -q -m "not slow" $(ARGS)
	@$(PY) -m coverage combine --quiet 2>/dev/null || true
	@$(PY) -m coverage report --include="$(COVERED)" --fail-under=100

lint: setup ## ruff, mypy --strict, import-linter
	@$(PY) -m ruff check --quiet $(CODE)
	@$(PY) -m ruff format --quiet --check $(CODE)
	@$(PY) -m mypy --no-error-summary
	@$(PY) -m mypy --no-error-summary --explicit-package-bases -p deploy.boot
	@.venv/bin/lint-imports --no-logo | tail -n 3

fmt: setup ## let ruff format
	@$(PY) -m ruff format --quiet $(CODE)
	@$(PY) -m ruff check --quiet --fix $(CODE)

bench: setup ## flows per second, latency, CPU, the agent's time to the key
	@$(PY) -m bench

fuzz: setup ## every parser of outside bytes under atheris: FUZZ_SECONDS=60 in all
	@$(PY) -m fuzz --seconds "$(or $(FUZZ_SECONDS),60)"

lock: setup ## pin all dependencies anew, with hashes
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@for set in "agent.lock" "broker.lock --extra broker" "dev.lock --extra broker --extra measure --group dev"; do \
	  set -- $$set; file=$$1; shift; \
	  .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    pyproject.toml "$$@" -o requirements/$$file; done

clean: ## remove what was made here
	@rm -rf .venv .state .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .import_linter_cache dist
