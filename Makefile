# make demo    a swarm of three nodes on this machine, one of which dies in the middle of its answer
# make test    every test, with real processes and a real model
# make lint    style, types and layers
# make bench   every benchmark; the tables go into docs/benchmarks.md
#
# Each makes .venv first, when it is missing or older than pyproject.toml. Compiling llama.cpp takes minutes, once.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test lint bench
.NOTPARALLEL:

demo: .venv/ready-run
	@$(RUN) -m llamanet demo --models-dir models

test: .venv/ready-test
	@$(RUN) -m pytest

lint: .venv/ready-lint
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy
	@.venv/bin/lint-imports

bench: .venv/ready-bench
	@$(RUN) benchmarks

.venv/ready-%: pyproject.toml tools/make_venv.py
	@$(PYTHON) tools/make_venv.py $*
