# Everything from nothing, with Python and make alone:
#
#   make quickstart     pretrains, instructs, evaluates and reports; see runs/quickstart/report.html
#   make test           the tests
#   make test-slow      the tests that install things or take long
#   make install        the environment only
#
# PYTHON=python3.13 (or 3.12) takes another Python. Each version has an environment of its own, made once: on 3.11 with
# the exact versions of requirements.lock, on others with the newest releases that setup.py allows.

CHOSEN := $(shell for python in $(or $(PYTHON),python3.11 python3); do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$python && break; done)
ifeq ($(CHOSEN),)
  $(error t5flan needs Python 3.11, 3.12 or 3.13, and $(or $(PYTHON),python3) is none: name one with `make PYTHON=/path/to/python3.11`)
endif
VERSION := $(shell $(CHOSEN) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
WORKDIR := runs/quickstart

# On a CPU a step takes large buffers and gives them back; in huge pages that costs a sixth less of T5 1.1 small's step.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

.PHONY: quickstart test test-slow install clean

quickstart: $(STAMP)
	$(BIN)/t5flan quickstart --workdir=$(WORKDIR)

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow' $(TESTS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow $(TESTS)

install: $(STAMP)

$(STAMP): setup.py requirements.lock
	@echo "installing into $(VENV) (once; some minutes)"
	$(CHOSEN) -m venv $(VENV)
ifeq ($(VERSION),3.11)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
endif
	@touch $@

clean:
	rm -rf .venv-* build dist *.egg-info .pytest_cache .cache
