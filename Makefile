# Everything runs in .venv, which the first target that needs it builds.
# It is built anew when pyproject.toml or constraints.txt change.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Many tests wait for processes of their own. Those of one file share what it sets up.
TESTS_AT_ONCE ?= 2

.PHONY: help setup demo test test-gpu test-browser lint bench bench-loader bench-graph bench-service clean
help:            ## what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Batchloom needs Python 3.11 or newer and found none. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[plan,graph,dev]'
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/batchloom
	touch $@

setup: $(STAMP)  ## build .venv

demo: $(STAMP)   ## the whole chain on real data
	@$(BIN)/batchloom demo --out demo-out

test: $(STAMP)   ## the tests, under ten minutes on two cores
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder

test-gpu: $(STAMP)  ## the tests that need a GPU, and the gathers' benchmark; figures in gpu-out/
	benchmarks/gpu_check.sh $(BIN)/python gpu-out

test-browser: $(STAMP)  ## the service's pages in a real Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -m browser -q

lint: $(STAMP)   ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## the benchmarks, printed as ratios; fails where a bar is missed
	$(BIN)/python benchmarks/foundation.py --check
	$(BIN)/python benchmarks/scale.py --check

bench-loader: $(STAMP)  ## the loader against memory, disk, object store and its peers (minutes, 15 GB)
	$(BIN)/python benchmarks/loader.py --check

bench-graph: $(STAMP)  ## graphs: sampling, building, training beside their references (minutes, 5 GB)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/graph.py --check
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/graph_build.py --check
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/graph_training.py --check

bench-service: $(STAMP)  ## the service and reports, beside files and a bare HTTP stream (minutes)
	$(BIN)/python benchmarks/service.py --check
	$(BIN)/python benchmarks/report.py --check

clean:           ## remove what the other targets made
	rm -rf $(VENV) .bench demo-out gpu-out build dist *.egg-info
