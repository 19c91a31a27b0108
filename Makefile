# `make help` lists the targets. Paths are relative on purpose: the checkout may lie below a folder
# with spaces in its name.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo train test test-fast test-faults test-detectron2 docs lint format clean

# PYTHON= names the interpreter of an environment to use. Without it everything goes into .venv,
# which BASE_PYTHON makes.
BASE_PYTHON ?= python3
ifeq ($(strip $(PYTHON)),)
run := .venv/bin/python
installer := $(BASE_PYTHON)
install_options := --venv .venv
else
run := $(PYTHON)
installer := $(PYTHON)
install_options :=
endif

help:
	@echo "make demo     contours traced by trained models of the package; pictures and a page in outputs/demo"
	@echo "make train    the main job on the embedded data set; results in outputs/shapes_settling"
	@echo "make test     the tests, two at a time; JOBS=8 for eight"
	@echo "make test-fast  those that take two minutes together"
	@echo "make test-faults  many kills and damaged files, and a long run; half an hour"
	@echo "make test-detectron2 DETECTRON2=FOLDER  those that Detectron2 can change, with the copy of it"
	@echo "              in FOLDER/detectron2 before the installed one"
	@echo "make docs     the documentation as a site: docs/_build/html"
	@echo "make install  set up only; the others do it themselves when needed"
	@echo "make lint     ruff (lint and format) and mypy"
	@echo "make format   let ruff mend what it can"
	@echo "make clean    remove caches and build files; keeps .venv, datasets and outputs"
	@echo
	@echo "PYTHON=/path/to/python uses that environment and adds what it lacks; otherwise all goes"
	@echo "into .venv, made with BASE_PYTHON (default: python3)."

install:
	@command -v "$(installer)" >/dev/null || \
	  { echo "make: there is no $(installer); name one of Python 3.10 or later: make install BASE_PYTHON=..." >&2; exit 1; }
	@"$(installer)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(installer) is $$("$(installer)" -V 2>&1), but 3.10 or later is needed; name one: make install $(if $(PYTHON),PYTHON,BASE_PYTHON)=..." >&2; exit 1; }
	@"$(installer)" scripts/install.py $(install_options)

# Nothing is trained or downloaded: the weights come with the package, the images are drawn.
models := BPTT=crbp://pathfinder_tiny_bptt contracting=crbp://pathfinder_tiny_contracting
# So small models are slower on several threads, on a busy machine many times.
demo: export OMP_NUM_THREADS = 1
demo: install
	"$(run)" tools/demo.py $(models) --count 4 --output outputs/demo
	"$(run)" tools/analyze.py page $(models) --images 6 --output outputs/demo/page.html
	@echo "Pictures, and the page to open in a browser: $$PWD/outputs/demo/page.html"

train: install
	"$(run)" tools/train_net.py --config-file configs/quick/shapes_settling.yaml OUTPUT_DIR outputs/shapes_settling

# JOBS= tests run at a time, on a core each; those of a file stay together, as they share what is slow
# to make.
JOBS ?= 2
pytest := -m pytest -n $(JOBS) --dist loadfile
test test-fast test-faults test-detectron2: export OMP_NUM_THREADS = 1

test: install
	"$(run)" $(pytest) -m "not faults" tests

test-fast: install
	"$(run)" $(pytest) -m "not slow and not faults" tests

# What docs/promises.md says, by many kills and damaged files, and a run of 5,000 iterations.
test-faults: install
	"$(run)" $(pytest) -m faults tests/faults tests/launch

# Left out are the core, which does not know Detectron2, tools that only start models of which others
# are tested here, and command lines that end before they have one.
test-detectron2: install
	@test -f "$(DETECTRON2)/detectron2/__init__.py" || \
	  { echo "make: DETECTRON2=FOLDER must name a folder that holds detectron2/" >&2; exit 1; }
	PYTHONPATH="$$(cd "$(DETECTRON2)" && pwd)" "$(run)" $(pytest) -m "not faults" -p no:cacheprovider \
	  tests/convert tests/data tests/evaluation tests/launch tests/modeling tests/pathfinder \
	  tests/analysis/test_exporting.py tests/analysis/test_segments.py tests/analysis/test_steps.py \
	  tests/analysis/test_predictions.py tests/analysis/test_page.py \
	  tests/setup/test_detectron2_calls.py tests/setup/test_doctor.py -k "not mistake"

# Warnings, dead links between the pages among them, are errors.
docs: install
	"$(run)" -m sphinx -W --keep-going -E -b html docs docs/_build/html

lint: install
	"$(run)" -m ruff check .
	"$(run)" -m ruff format --check .
	"$(run)" -m mypy

format: install
	"$(run)" -m ruff check --fix .
	"$(run)" -m ruff format .

clean:
	rm -rf build dist docs/_build crbp_d2.egg-info .pytest_cache .mypy_cache .ruff_cache
	find crbp_d2 benchmarks tests tools datasets scripts detectron2_alias -name __pycache__ -prune -exec rm -rf {} +
