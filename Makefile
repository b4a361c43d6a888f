# make demo    a swarm of three nodes on this machine, one of which dies in the middle of its answer
# make test    every test, with real processes and a real model
# make lint    style, types and layers
# make docs    the site, into .cache/site; strictly, so that a broken link or reference is an error
# make fuzz    ten million spoilt inputs into each decoder of what comes from the network; minutes to an hour
# make bench   every benchmark; the tables go into docs/benchmarks.md
#
# Each makes .venv first, when it is missing or older than pyproject.toml. Compiling llama.cpp takes minutes, once.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test lint docs fuzz bench
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

docs: .venv/ready-docs
	@$(RUN) tools/make_configuration.py
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

fuzz: .venv/ready-test
	@$(RUN) tests/wire/fuzz_wire.py

bench: .venv/ready-bench
	@$(RUN) benchmarks

.venv/ready-%: pyproject.toml tools/make_venv.py
	@$(PYTHON) tools/make_venv.py $*
