# Everything from nothing, with only Python and make:
#
#   make quickstart     pretrain, finetune, evaluate and report; see runs/quickstart/report.html
#   make test           the tests
#   make test-slow      the tests that take long or install things
#   make lint           formatting, lint and types
#   make docs           the documentation site, in build/docs
#   make install        only the environment
#
# SEED=7 (or SEED=last) runs the tests in random order.
# PYTHON=python3.13 (or 3.12) selects another Python. Each version has its own environment, created once: on 3.11 with
# the exact versions of requirements.lock, on 3.12 and 3.13 with the newest releases that setup.py allows.

CHOSEN := $(shell for python in $(or $(PYTHON),python3.11 python3); do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$python && break; done)
ifeq ($(CHOSEN),)
  $(error t5flan needs Python 3.11, 3.12 or 3.13, but $(or $(PYTHON),python3) is not one of them: set `make PYTHON=/path/to/python3.11`)
endif
VERSION := $(shell $(CHOSEN) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
WORKDIR := runs/quickstart
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile $(if $(SEED),--randomly-seed=$(SEED),-p no:randomly)

# On a CPU, a step allocates and frees large buffers; huge pages take a sixth off the time of a T5 1.1 small step.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

.PHONY: quickstart test test-slow lint docs install clean

quickstart: $(STAMP)
	$(BIN)/t5flan quickstart --workdir=$(WORKDIR)

test: $(STAMP)
	$(PYTEST) -m 'not slow' $(TESTS)

test-slow: export T5FLAN_TEST_OPTIMIZE := 1
test-slow: $(STAMP)
	$(PYTEST) -vv -m 'slow or golden' $(TESTS)  # each test's name as it ends: a failure is known before the last one

lint: $(STAMP)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict  # the variable silences a notice about the next MkDocs

install: $(STAMP)

$(STAMP): setup.py requirements.lock
	@echo "installing into $(VENV) (once; takes a few minutes)"
	$(CHOSEN) -m venv $(VENV)
ifeq ($(VERSION),3.11)
	$(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
else
	$(PIP) -e '.[dev,docs]'
endif
	@touch $@

clean:
	rm -rf .venv-* build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache
