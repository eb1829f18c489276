# `make help` lists the targets.
# PYTHON=/path/to/python3.12 make ... uses that Python.

.DEFAULT_GOAL := help
export PYTHON ?=
PY := .venv/bin/python
ARGS ?=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
	while IFS="$$(printf '\t')" read -r name text; do printf '  %-15s %s\n' "$$name" "$$text"; done

# --- use it ------------------------------------------------------------------

.PHONY: run
run: ## set up and start Syncflow with its demo systems (Ctrl-C stops it)
	@scripts/bootstrap requirements-demo.txt
	@exec env PATH="$(CURDIR)/.venv/bin:$$PATH" ./syncflow demo $(ARGS)

.PHONY: setup
setup: ## create .venv with what Syncflow needs to run
	@scripts/bootstrap requirements.txt

.PHONY: setup-dev
setup-dev: ## create .venv with what the tests, checks and docs need as well
	@scripts/bootstrap requirements-dev.txt

# --- test it -----------------------------------------------------------------

.PHONY: test
test: services chromium ## run all tests, with real PostgreSQL, RabbitMQ and browser (ARGS="-k name")
	@SYNCFLOW_REQUIRE_SERVICES=1 $(PY) -m pytest -n auto --dist loadfile $(ARGS)

.PHONY: unit
unit: setup-dev ## run the fast tests, which need no services
	@$(PY) -m pytest -m unit $(ARGS)

.PHONY: lint
lint: setup-dev ## check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

.PHONY: types
types: setup-dev ## check types
	@$(PY) -m mypy

.PHONY: docs
docs: setup-dev ## build the documentation as a site in var/site, and fail on a broken link
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "var/site/index.html"

.PHONY: reference
reference: setup-dev ## write docs/reference from the code: settings, commands, errors, metrics, messages
	@$(PY) scripts/reference

.PHONY: fmt
fmt: setup-dev ## format the code and apply automatic fixes
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

.PHONY: model
model: setup-dev ## run random histories through the real conductor (SECONDS=300 or HISTORIES=20000, SEED=7)
	@$(PY) -m tests.histories.model $(ARGS)

.PHONY: chaos
chaos: setup-dev ## kill, cut and restart everything under load, then compare every record (SECONDS=60 SEED=7 FAULTS=failover)
	@$(PY) -m tests.chaos

.PHONY: mutants
mutants: setup-dev ## remove each protective mechanism and check that a test fails (ARGS="lease")
	@$(PY) scripts/mutants $(ARGS)

.PHONY: bench
bench: services ## measure: all benchmarks; `make bench-NAME` for one of them (ARGS="--rounds 5")
	@$(PY) -m benchmarks $(ARGS)

bench-%: services
	@$(PY) -m benchmarks $* $(ARGS)

.PHONY: screenshots
screenshots: chromium ## take the screenshots of the panel for README and docs (ARGS="FOLDER --all")
	@$(PY) scripts/screenshots $(ARGS)

# --- what the tests need -----------------------------------------------------

.PHONY: services
services: setup-dev ## start PostgreSQL and RabbitMQ for the tests, unless they already run
	@$(PY) scripts/services up

.PHONY: services-stop
services-stop: setup-dev ## stop the services that `make services` started, and only those
	@$(PY) scripts/services down

.PHONY: chromium
chromium: setup-dev ## install chromium for the browser tests, unless there is one
	@$(PY) scripts/services chromium

# --- keep it -----------------------------------------------------------------

.PHONY: lock
lock: setup-dev ## write the installed versions of indirect packages to constraints.txt
	@$(PY) scripts/lock

.PHONY: texts
texts: setup-dev ## update the panel's translations from its texts; list those not translated
	@$(PY) scripts/texts

.PHONY: house
house: setup-dev ## draw the structure of the code for docs/explanation/architecture.md; `scripts/house figures` measures it
	@$(PY) scripts/house draw

.PHONY: clean
clean: ## remove .venv and caches, but not your data in var/
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
