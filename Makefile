# make certify   set up .venv and certify the iris example
# make test      set up .venv and run the tests, without those that only repeat a pattern
# make test-all  the same with all of them
# PYTHON=python3.12 make ...   another interpreter (3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed

# The tensors of these runs are small: more threads would only wait for each other.
export OMP_NUM_THREADS ?= 1
# Each process that a test starts would compile all modules anew, where the environment says so.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup certify test test-all lint examples clean

help:
	@echo "make certify | test | test-all | lint | examples | clean"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "milp_agt needs Python 3.11 or newer; found " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[gurobi,scip,data,report,test,dev]" || { \
		$(PIP) -e ".[data,report,test,dev]" && \
		for extra in gurobi scip; do \
			$(PIP) -e ".[$$extra]" \
			|| echo "note: the solver extra '$$extra' cannot be installed here; going on without it"; \
		done; }
	@touch $@

certify: $(STAMP)
	$(BIN)/milp-agt certify examples/iris.toml --out runs/iris --force

# A file stays with one worker, so that what its tests share is made once.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Which ones: make examples SCRIPTS=examples/audit.py RUNS=examples/iris.toml
SCRIPTS ?= $(wildcard examples/*.py)
RUNS ?= $(wildcard examples/*.toml)

# A verdict of NOT PROVED (exit code 1) is an answer; anything else but 0 is a failure.
examples: $(STAMP)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	for script in $(SCRIPTS); do \
		echo "== $$script --small"; $(BIN)/python "$$script" --small || exit 1; \
	done && \
	for run in $(RUNS); do \
		echo "== $$run"; code=0; \
		$(BIN)/milp-agt certify "$$run" --out "$$out/$$(basename "$$run" .toml)" || code=$$?; \
		if [ $$code -gt 1 ]; then exit $$code; fi; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
