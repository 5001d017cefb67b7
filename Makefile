# Music through pictures. `make help` lists the commands; each sets up what it needs.
PYTHON ?= python3
RUN    ?= runs/default
VENV   := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/.ready
PY    := $(BIN)/python
# Tests in several processes, those of one file in one; each computes on one thread (conftest.py).
TESTS := $(PY) -m pytest tests -n auto --maxprocesses 4 --dist loadfile

export TF_CPP_MIN_LOG_LEVEL ?= 3
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup run site music test lint unit quick notebooks-test gpu-test lab bench sweep refresh clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: run make PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install -r requirements.txt
	@touch $(READY)

setup: $(READY)  ## install everything into .venv (once)

run: $(READY)  ## the whole chain on the built-in corpus: images, models, MIDI, sound
	$(PY) chain.py --run-dir $(RUN)

site: $(READY)  ## docs/index.html: a gallery of what the trained weights generate
	$(PY) docs/site_page.py

music: $(READY)  ## new music at once, from the trained weights in data/models
	$(PY) chain.py --run-dir runs/music --only 04 05 06

test: lint unit notebooks-test  ## ruff, all tests, and every notebook

lint: $(READY)  ## ruff, notebooks too
	$(PY) -m ruff check .

unit: $(READY)  ## unit, property, hostile-input, chain and anatomy tests
	$(TESTS)

quick: $(READY)  ## the fast tests alone, about a minute, while you work
	$(TESTS) -m "not slow and not browser" --hypothesis-profile=quick

notebooks-test: $(READY)  ## pytest --nbval, strict, every notebook in a fresh copy of the tree
	$(PY) tests/nbval_fresh.py

gpu-test: $(READY)  ## the whole chain on a GPU, against stored figures (the script's status is 3 without one)
	$(PY) tests/gpu_chain.py

lab: $(READY)  ## open JupyterLab on the notebooks
	$(PY) -m jupyter lab notebooks/01_midi2img.ipynb

bench: $(READY)  ## measure speed beside peers, on this machine: runs/bench/bench.md
	$(PY) tests/benchmarks/bench.py

sweep: $(READY)  ## a small grid of parameters, two runs at a time, with one table at the end
	$(PY) chain.py --run-dir runs/sweep --only 01 02 07 --grid seed=0,1 02.train_steps=300,600 02.size=mini,small

refresh: $(READY)  ## run the notebooks from scratch and keep their outputs (before a commit)
	$(PY) tests/nbval_fresh.py --refresh

clean:  ## remove the tools' caches (never runs/)
	rm -rf .pytest_cache .ruff_cache .hypothesis
