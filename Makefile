# The front door for people: each target makes its own virtual environment where it is missing.
# `make test VENV=/some/where PYTHON=python3.12` uses others.

PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 10

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMPS := $(VENV)/.lrjax

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slow fuzz breakages lint docs papers bench clean

help:
	@echo "make demo       install, then complete a real table and draw the result"
	@echo "make test       the tests; make test-all for those that take minutes as well"
	@echo "make fuzz       odd inputs to everything public for MINUTES=10, in two processes; fails on a finding"
	@echo "make breakages  breaks the library in one place at a time and asks whether the tests notice (an hour)"
	@echo "make lint       ruff and pyright"
	@echo "make docs       the documentation, into docs/_build/html"
	@echo "make papers     every claim of every paper again (an hour); make papers PAPERS=--quick for a smaller run"
	@echo "make bench      the benchmarks beside the peers (hours); make bench BENCH=--quick to try them"
	@echo "make clean      remove the virtual environment and everything built"

demo: $(STAMPS)/demo
	$(BIN)/lrjax demo

test: $(STAMPS)/test
	$(BIN)/python -m pytest -n 2

test-all: $(STAMPS)/test
	$(BIN)/python -m pytest -n 2 -m ""

test-slow: $(STAMPS)/test
	$(BIN)/python -m pytest -m slow -n 0

fuzz: $(STAMPS)/test
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --jobs 2

breakages: $(STAMPS)/test
	$(BIN)/python -m tests.breakages --jobs 2

lint: $(STAMPS)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMPS)/docs
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

papers: $(STAMPS)/test
	$(BIN)/python -m papers run --all $(PAPERS)

bench: $(STAMPS)/bench
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf "$(VENV)" docs/_build docs/gallery

# One stamp per set of packages: a set is installed again only when pyproject.toml is newer.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else "lrjax needs Python 3.11 or newer, but $(PYTHON) is " + v + "; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv "$(VENV)"
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: pyproject.toml | $(STAMPS)/venv
	$(PIP) -e .
	@$(PIP) -e '.[data]' || echo "note: the optional data packages could not be installed; the demo does without them"
	$(movielens)
	@touch $@

$(STAMPS)/test: pyproject.toml | $(STAMPS)/venv
	$(PIP) -e '.[test,data]'
	$(movielens)
	@touch $@

$(STAMPS)/docs: pyproject.toml | $(STAMPS)/venv
	$(PIP) -e '.[docs,data]'
	$(movielens)
	@touch $@

$(STAMPS)/bench: pyproject.toml | $(STAMPS)/venv
	$(PIP) -e '.[data,bench]'
	@$(PIP) -e '.[bench,peers]' || echo "note: not all peers could be installed; those that are missing are skipped"
	$(movielens)
	@touch $@

# Only a text file of this wheel is read (MovieLens-100K), so none of its dependencies are wanted.
define movielens
@$(PIP) --no-deps recbole==1.2.1 || echo "note: recbole 1.2.1 could not be installed; what needs MovieLens-100K is skipped"
endef
