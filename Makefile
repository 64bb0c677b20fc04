# Everything happens in .venv, which is made at the first call and renewed when pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
PEERS := $(VENV)/peers
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The first interpreter that is new enough; `make PYTHON=/path/to/python3` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# More arguments for the program that a target runs: `make test ARGS="-k wire"`, `make bench ARGS=--quick`.
ARGS ?=

# Tests wait more than they compute: more processes than processors pay.
WORKERS ?= 5

# A machine may forbid byte code, as images of containers do. Then each of a thousand processes compiles anew.
unexport PYTHONDONTWRITEBYTECODE

# Where the built pages go.
PAGES := build/docs

.PHONY: help demo test lint docs format bench chaos fuzz jar clean

help:
	@echo 'make demo    run 1,000 Java tasks on two local nodes'
	@echo 'make test    run the tests'
	@echo 'make lint    check style, types and layers'
	@echo 'make docs    build the documentation into $(PAGES)'
	@echo 'make format  format the code'
	@echo 'make bench   measure (ARGS=--quick: a short run)'
	@echo 'make chaos   kill processes and cut connections under 5,000 tasks (ARGS="--seed 1")'
	@echo 'make fuzz    give made-up bytes to every parser (ARGS="--seconds 600 odata")'
	@echo 'make jar     build examples/02_pi/tasks/pi.jar again (needs a JDK, 17 or newer)'
	@echo 'make clean   remove what these made'

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy batchflow node_agent
	$(BIN)/mypy --exclude /tasks/ examples
	$(BIN)/mypy --explicit-package-bases --exclude '/(tasks|contenders)/' tests
	$(BIN)/mypy --no-warn-return-any tests/benchmarks/contenders
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/assets/draw.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs $(PAGES)
	@echo 'open $(PAGES)/index.html'

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev $(PEERS)/.installed
	@$(BIN)/python -m tests.benchmarks $(ARGS)

chaos: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.chaos $(ARGS)

# Atheris is installed here alone: it has wheels for some Pythons on Linux, and nothing else needs it.
fuzz: $(VENV)/.installed-dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(INSTALL) atheris
	@$(BIN)/python -m tests.fuzz $(ARGS)

# Stored, dated and with a manifest of its own: the same source gives the same bytes.
jar:
	rm -rf build/pi && mkdir -p build/pi/META-INF
	javac --release 11 -g:none -Xlint:all -Werror -d build/pi examples/02_pi/java/Pi.java
	cp examples/02_pi/java/MANIFEST.MF build/pi/META-INF/
	jar --create --file examples/02_pi/tasks/pi.jar --no-compress --no-manifest \
		--date 2000-01-01T00:00:00Z -C build/pi META-INF/MANIFEST.MF -C build/pi Pi.class

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find batchflow node_agent examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'batchflow needs Python 3.11 or newer: make PYTHON=/path/to/python3' >&2; exit 1; }
	@echo 'Setting up $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)

# Line by line: a peer that does not install is shown as such, and the others are measured.
$(PEERS)/.installed: tests/benchmarks/peers.txt | $(BIN)/python
	@echo 'Installing what batchflow is measured against ...'
	@$(BIN)/python -m venv $(PEERS)
	@grep -v '^#' $< | while read -r peer; do \
		$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$peer \
		|| echo "cannot install: $$peer" >&2; done
	@touch $@

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo 'Installing batchflow and what it needs ...'
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo 'Installing batchflow, what it needs and what its tests need ...'
	@$(INSTALL) 'uv>=0.9'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --link-mode copy --editable '.[dev]' \
		|| $(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed
