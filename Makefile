# `make serve` and `make test` are the two commands. Each does all of its own set-up, in .venv beside this file, and
# presumes Python 3.11 to 3.14 and nothing else. A second run starts at once: the stamps in .venv say what is done.

VENV   := .venv
MODELS := examples
ARGS   :=
PYTHON :=

# The locks are complete, so --no-deps: nothing may come in that is not pinned by hash.
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
LOCKED  := $(INSTALL) --require-hashes
# Tests wait for processes much of their time, so two more run than there are cores. Stealing gives each a run of
# neighbours, so that few servers that a file shares are started twice.
JOBS    := $(shell echo $$(($$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 2)))
PYTEST  := $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

# A test run starts hundreds of processes, which would each compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test check lint reproduce bench bench-journal bench-monitors bench-alarms loadtest demo lock prove-image clean

help:  ## This list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 22

serve: $(VENV)/.runtime  ## Serve the example models on port 8080; MODELS=folder, ARGS="--port 9000"
	@exec $(VENV)/bin/headgate serve --models $(MODELS) $(ARGS)

test: $(VENV)/.dev  ## Run the test suite; ARGS="-k name" for a part of it
	$(PYTEST) $(ARGS)

check: lint test reproduce  ## What CI runs: ruff, mypy --strict, the test suite, the examples trained anew

reproduce: $(VENV)/.dev  ## Train the examples anew: models, lineage and baselines are those that ship
	$(PYTEST) -m reproduces tests/examples

lint: $(VENV)/.dev  ## ruff and mypy --strict alone
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict

BENCH_JOURNAL = for each in journal feedback ledger overload faults; do \
	    echo "== $$each"; $(VENV)/bin/python -m loadtests.$$each $(filter --quick,$(ARGS)) || status=1; done

# Whoever asks for some rows gets these alone; else bench-journal is the other half of the benchmark.
bench: $(VENV)/.dev  ## Measure beside a raw echo, onnxruntime and FastAPI (needs wrk), then bench-journal; ARGS=--quick for a look
	@status=0; $(VENV)/bin/python -m loadtests.bench $(ARGS) || status=$$?; \
	    $(if $(findstring --only,$(ARGS)),,$(BENCH_JOURNAL);) exit $$status

bench-journal: $(VENV)/.dev  ## Measure journal (read, export, archive, replay, start), feedback, ledger, overload, faults
	@status=0; $(BENCH_JOURNAL); exit $$status

bench-monitors: $(VENV)/.dev  ## Measure the monitors beside Evidently, NannyML, DataSketches and river, and catching up
	@$(VENV)/bin/python -m loadtests.monitors $(ARGS)
	@$(VENV)/bin/python -m loadtests.catchup

bench-alarms: $(VENV)/.dev  ## Simulate years without change, and delays with one, for docs/monitoring-results.md
	@$(VENV)/bin/python -m loadtests.alarms $(ARGS)

loadtest: $(VENV)/.dev  ## Users with think time for a minute, report in reports/; ARGS="--pattern soak --seconds 3600"
	@$(VENV)/bin/python -m loadtests.users $(ARGS)

demo: $(VENV)/.dev  ## Nine months of flights in four minutes, with pictures in docs/; ARGS="--flights 5000 --out DIR"
	@$(VENV)/bin/python -m examples.flights.demo $(ARGS)

lock:  ## Write the lock files anew from pyproject.toml; ARGS=--upgrade moves every pin
	@PYTHON="$$(PYTHON='$(PYTHON)' scripts/find-python)" scripts/lock $(ARGS)

prove-image:  ## Run the Dockerfile's install and start commands without Docker, as another user (needs root)
	@scripts/prove_image.sh

clean:  ## Remove .venv and caches; models and data stay
	rm -rf $(VENV) .venv-lock .venv-bench .venv-load .venv-evidently .venv-nannyml .venv-sketches .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find gateway loadtests tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that was made by hand and works is kept; one that was left half made is made again.
$(VENV)/.created:
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	    python="$$(PYTHON='$(PYTHON)' scripts/find-python)" && \
	    echo "headgate: first run, installing into $(VENV) with $$python: this takes a minute or two" && \
	    "$$python" -m venv --clear $(VENV); }
	@touch $@

$(VENV)/.build: requirements-build.lock $(VENV)/.created
	@$(LOCKED) -r requirements-build.lock
	@touch $@

$(VENV)/.runtime: requirements.lock pyproject.toml $(VENV)/.build
	@$(LOCKED) -r requirements.lock
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "headgate: installing the tests' requirements into $(VENV)"
	@$(LOCKED) -r requirements-dev.lock
	@touch $@
