# Every command of the project. `make help` lists them. All of them set up what they need.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= python3
EXAMPLE ?= digits
CHEAT ?=
DATABASE_URL ?=
SCHEMA := platform/labapex_server/api/openapi.yaml
DESCRIBE = $(BIN)/python manage.py spectacular --validate --fail-on-warn

.DEFAULT_GOAL := help
.PHONY: chaos help setup runner demo test test-torch stack-test test-sandbox check audit sbom schema format lock bench bench-ingest bench-pages bench-package bench-proof bench-styles gpu-check attacks honest fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.complete ## create .venv with everything in it

# torch is installed by itself: which build is right is the machine's choice. All else is locked with hashes.
$(VENV)/.complete: requirements.txt requirements-frameworks.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes)"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-frameworks.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

runner: $(VENV)/.complete ## freeze the runner (cached by the digest of its sources)
	@$(BIN)/python -m labapex_runner.build --out build/runner

demo: runner ## run a job from submission to payment; EXAMPLE=chargpt, CHEAT=noop|skip-epochs|forged-loss|other-seed|half-batch
	@$(BIN)/python examples/demo.py --example '$(EXAMPLE)' --cheat '$(CHEAT)'

test: check runner ## everything static, and all tests
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 20

test-torch: runner ## a host without torch, from the platform's wheels to the verdict; pip has to find this torch, 200 MB and more
	LABAPEX_TEST_SUPPLIED_TORCH=1 $(BIN)/python -m pytest --numprocesses 0 --durations 3 tests/e2e/test_supplied_torch.py

stack-test: runner ## what docker/compose.yaml starts, on this machine's PostgreSQL, Redis and RabbitMQ, one of each lost meanwhile
	CI=true $(BIN)/python -m pytest --numprocesses 0 --durations 3 tests/docker tests/e2e/test_stack.py

test-sandbox: runner ## what a hostile script is refused, by the worker's sandbox and the platform's, as a table
	@$(BIN)/python tests/sandbox/table.py

check: $(VENV)/.complete ## everything static: style, types, layers, Django's own checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	@LABAPEX_HOME=$(CURDIR)/build/deployed LABAPEX_PUBLIC_URL=https://apex.example.org $(BIN)/python manage.py check --deploy --fail-level WARNING
	$(BIN)/python manage.py makemigrations --check --dry-run
	@$(DESCRIBE) | diff -q - $(SCHEMA) || { echo "The REST API is not as $(SCHEMA) describes it: make schema"; exit 1; }

audit: $(VENV)/.complete ## known vulnerabilities of what is locked, as PyPI knows them (needs its JSON API)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt

sbom: $(VENV)/.complete ## what the images are made of, as CycloneDX: build/sbom.json
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements --output-reproducible --output-file build/sbom.json docker/requirements.txt

schema: $(VENV)/.complete ## write the OpenAPI description of the REST API
	$(DESCRIBE) > $(SCHEMA)

format: $(VENV)/.complete ## bring the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(VENV)/.complete ## every parser of hostile input, with atheris: SECONDS (170) for all together, TARGETS for some
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),170) $(TARGETS)

attacks: runner ## every lie against every rule, as a table; then five cheats against the whole platform
	$(BIN)/python tests/attacks/matrix.py
	$(BIN)/python -m pytest tests/attacks/test_cheats.py

honest: $(VENV)/.complete ## honest runs of every style against every rule, as a table; none may be refused
	$(BIN)/python tests/attacks/honest.py

bench: runner ## ratios against a named baseline, measured in the same run: the short ones
	@for script in ingest.py 'pages.py --quick' 'package.py --quick' 'styles.py functions amp_scaler session_usual' 'proof.py --quick'; do echo "== $$script"; $(BIN)/python benchmarks/$$script || exit 1; done

bench-pages: $(VENV)/.complete ## how soon a point is on the screen with 100 viewers, and a page of long runs; 2 minutes, QUICK=1 for less
	@$(BIN)/python benchmarks/pages.py $(if $(QUICK),--quick)

bench-package: runner ## packaging and start-up for 1 MB, 100 MB and 1 GB of data, against a build for each job and a payload at the end
	@$(BIN)/python benchmarks/package.py

bench-ingest: $(VENV)/.complete ## points a second stored and acknowledged, and CPU for each, against MLflow and trackio; 5 minutes, DATABASE_URL=.. for PostgreSQL too
	@$(BIN)/python benchmarks/wire.py --database-url '$(DATABASE_URL)'

chaos: runner ## jobs while everything is killed, cut and garbled, on PostgreSQL, Redis and RabbitMQ; SECONDS=600, SEED=.. to have a play again
	@$(BIN)/python tests/chaos/play.py --seconds '$(or $(SECONDS),600)' $(if $(SEED),--seed '$(SEED)')

bench-proof: $(VENV)/.complete ## what recording and verifying cost, and a replay's error; 6 minutes, QUICK=1 for one
	@$(BIN)/python benchmarks/proof.py $(if $(QUICK),--quick)

bench-styles: $(VENV)/.complete ## every script of tests/scripts by labapex record, verify and replay, as a table; 15 minutes
	@$(BIN)/python benchmarks/styles.py

gpu-check: ## on a machine with a GPU, under its own torch (GPU_PYTHON): what replays and recording do there; writes docs/benchmarks/gpu.md
	@PYTHONPATH="client_sdk:worker_agent$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) benchmarks/gpu.py

lock: $(VENV)/.complete ## bring requirements.txt up to date with requirements.in
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links --strip-extras --output-file=requirements.txt requirements.in
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links --strip-extras --extra server --extra worker --output-file=docker/requirements.txt pyproject.toml docker/requirements.in

clean: ## remove what was built, but not the environment
	rm -rf build var test-artefacts
