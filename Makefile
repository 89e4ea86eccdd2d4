# Every target sets up what it needs: a virtual environment in .venv with everything installed. What is done already
# is skipped; after a change of pyproject.toml or constraints.txt the install runs again.

VENV := .venv
CORE := .venv-core
PYTHON = $(VENV)/bin/python
# -qq: pip says nothing but errors. `make venv PIP_FLAGS=` shows all that it does.
PIP_FLAGS ?= -qq
# More arguments for pytest: `make test PYTEST_FLAGS='-x -k knn'`.
PYTEST_FLAGS ?=
SOURCES := $(wildcard evaluators/*.py feature_store/*.py feature_store/*/*.py pipelines/*.py pipelines/*/*.py vitrine/*.py vitrine/*/*.py)

# Neither an environment that happens to be active nor settings meant for another one reach in here.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The environment holds absolute paths, so one that was moved or copied here is installed again.
ifneq ($(shell cat $(VENV)/.installed 2>/dev/null),$(CURDIR))
$(shell rm -f $(VENV)/.installed)
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint faults bench core-test clean

help:  ## say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 \t\2/p' Makefile | expand -t 18

venv: $(VENV)/.installed  ## make .venv with everything installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@found=; for python in python3.11 python3 python3.12 python3.13; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo "No Python >= 3.11 with venv was found; install one (Debian: python3 python3-venv)." >&2; exit 1; fi; \
	test -x $(PYTHON) || $$found -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes minutes and, with torch for CUDA, about 7 GB."
	@$(PYTHON) -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[all]'
	@printf '%s' '$(CURDIR)' > $@

demo: venv  ## run the whole job on scenes made of real photographs, and print one table
	$(PYTHON) -m vitrine demo

lint: venv  ## ruff and mypy --strict
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: lint core-test  ## lint, core-test, the benchmarks tiny and untimed, then all tests
	$(PYTHON) -m pytest -q -p no:cacheprovider benchmarks -o python_files='bench_*.py'
	$(PYTHON) -m pytest $(PYTEST_FLAGS)

core-test: $(CORE)/.installed  ## the tests of store and evaluators where only the core and faiss are installed
	$(CORE)/bin/python -P -m pytest tests/feature_store tests/evaluators -q -p no:cacheprovider $(PYTEST_FLAGS)

$(CORE)/.installed: $(VENV)/.installed $(SOURCES) docker/core_environment.py
	$(PYTHON) docker/core_environment.py $(CORE)
	@touch $@

faults: venv  ## every fault as often as docs/reliability.md says, which is written anew; hours (part: SHARE=0.1 PYTEST_FLAGS='-k power')
	VITRINE_FAULTS=$(or $(SHARE),full) $(PYTHON) -m pytest tests/faults -o timeout=0 -o faulthandler_timeout=0 $(PYTEST_FLAGS)

bench: venv  ## all benchmarks at full size
	VITRINE_BENCH=full $(PYTHON) -m pytest benchmarks -o python_files='bench_*.py' -o timeout=0 -o faulthandler_timeout=0 -s $(PYTEST_FLAGS)

clean:  ## remove both environments and all caches
	rm -rf $(VENV) $(CORE) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
