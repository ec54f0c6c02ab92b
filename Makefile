# What a person and CI run. Needs Python >= 3.11 with venv, make and a C++ compiler (hnswlib and pdqhash are built here).
#
#   make demo                     the main job on the built-in synthetic crawl
#   make demo SRC=~/photos        the same on a folder, a tar or a Parquet file of your own
#   make test                     every test
#
# Variables: PYTHON (the interpreter that .venv is made from), VENV, SRC, LAKE, PIP_FLAGS, PYTEST_FLAGS, BENCH.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=
BENCH ?= --help

BIN := $(VENV)/bin
STAMP := $(VENV)/.facescale-installed
SOURCES := facescale jobs tests tools

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs bench clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-18s %s\n' "$$target" "$$text"; done

setup: $(STAMP) ## make .venv and install facescale with its tested dependencies (again only when these change)

# torch first and by itself: of the builds an installer is offered, the one that constraints.txt names is settled
# before any other package can ask for a newer one. `dev` holds default-models, cpu, hnsw, onnx and synth.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "facescale needs Python 3.11 or newer and $(PYTHON) is not: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "facescale is installed in $(VENV): . $(VENV)/bin/activate"

# SRC and LAKE reach the shell through the environment, so that spaces and quotes in them stay what they are.
# A shell expands ~ only where a word begins with it, hence the case.
export SRC LAKE
demo: setup ## run the main job: on the synthetic crawl, or with SRC=… on your photos (LAKE=… to say where to)
	@set -eu; \
	if [ -z "$$SRC" ]; then exec $(BIN)/facescale demo --out demo; fi; \
	case "$$SRC" in "~") SRC="$$HOME";; "~/"*) SRC="$$HOME/$${SRC#??}";; esac; \
	if [ -d "$$SRC" ]; then SRC="$$(CDPATH= cd -- "$$SRC" && pwd)"; fi; \
	case "$$LAKE" in "~/"*) LAKE="$$HOME/$${LAKE#??}";; "") LAKE="demo/$$(basename "$$SRC").lake";; esac; \
	mkdir -p demo; \
	$(BIN)/facescale run "$$SRC" "$$LAKE"; \
	$(BIN)/facescale lake info "$$LAKE"; \
	printf '\nSearch it:  %s/facescale search "%s" PHOTO.jpg\n' "$(BIN)" "$$LAKE"

test: setup ## run the tests (FACESCALE_TEST_DATA=folder adds those on real photographs)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: setup ## ruff, formatting, mypy --strict, import directions
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: setup ## render docs/tables.md and docs/configuration.md from the schemas and the config models
	$(BIN)/python tools/render_docs.py

bench: setup ## side-by-side measurements, e.g. BENCH='extract PHOTOS'; alone it lists them
	$(BIN)/facescale bench $(BENCH)

clean: ## remove caches, builds and the demo's output
	rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find facescale jobs tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf "$(VENV)"
