# Every command of the project. `make help` lists them. All of them set up what they need.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
EXAMPLE ?= digits
CHEAT ?=

.DEFAULT_GOAL := help
.PHONY: help setup runner demo test check format lock bench bench-proof bench-styles attacks honest clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.complete ## create .venv with everything in it

# torch is installed by itself: which build is right is the machine's choice. All else is locked with hashes.
$(VENV)/.complete: requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes)"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

runner: $(VENV)/.complete ## freeze the runner (cached by the digest of its sources)
	@$(BIN)/python -m labapex_runner.build --out build/runner

demo: runner ## run a job from submission to payment; EXAMPLE=chargpt, CHEAT=noop|skip-epochs|forged-loss|other-seed|half-batch
	@$(BIN)/python examples/demo.py --example '$(EXAMPLE)' --cheat '$(CHEAT)'

test: check runner ## everything static, and all tests
	$(BIN)/python -m pytest

check: $(VENV)/.complete ## everything static: style, types, layers, Django's own checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run

format: $(VENV)/.complete ## bring the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

attacks: runner ## every lie against every rule, as a table; then five cheats against the whole platform
	$(BIN)/python tests/attacks/matrix.py
	$(BIN)/python -m pytest tests/attacks/test_cheats.py

honest: $(VENV)/.complete ## honest runs of every style against every rule, as a table; none may be refused
	$(BIN)/python tests/attacks/honest.py

bench: runner ## ratios against a named baseline, measured in the same run: the short ones
	@for script in ingest.py package.py styles.py 'proof.py --quick'; do echo "== $$script"; $(BIN)/python benchmarks/$$script || exit 1; done

bench-proof: $(VENV)/.complete ## what recording and verifying cost, and a replay's error; 6 minutes, QUICK=1 for one
	@$(BIN)/python benchmarks/proof.py $(if $(QUICK),--quick)

bench-styles: $(VENV)/.complete ## every style of script recorded, and replayed from every window, as a table
	@$(BIN)/python benchmarks/styles.py

lock: $(VENV)/.complete ## bring requirements.txt up to date with requirements.in
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links --strip-extras --output-file=requirements.txt requirements.in

clean: ## remove what was built, but not the environment
	rm -rf build var test-artefacts
