# The only commands anyone types; `make` alone lists them.
# Variables: PYTHON (which Python makes .venv), DIR (what the demo reads), PG_CONFIG (of which server),
# ARGS (more words for the command).

PYTHON ?= python3
ARGS   ?=
JOBS   ?= 2
DIR    ?=
PG_CONFIG ?= pg_config

BIN  := .venv/bin
SHELL := /bin/sh
.DEFAULT_GOAL := help

# What the package needs to run and to be tested; the stamp makes the second `make` start at once.
STAMP := .venv/.installed
# Formatters, type checker and the rest: `make test` and `make demo` do without them.
LINT_STAMP := .venv/.installed-lint

# What migrate sets itself (timeouts), and what is meant: narrow columns in the hot tables.
SQUAWK_EXCLUDE := require-lock-timeout,require-statement-timeout,ban-char-field,prefer-bigint-over-int,prefer-bigint-over-smallint

.PHONY: help setup demo test lint format types audit check docs model fuzz torture failover upgrade mutants servers \
  bench soak bench-sql install-extension build release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with the package and its test tools

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python '>=3.11' .venv \
	  && uv pip install --quiet --python $(BIN)/python --editable '.[cli,embedded]' --group test; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu install that part with: apt-get install python3-venv" >&2; exit 1; }; \
	  echo "setting up .venv (once, half a minute)"; \
	  $(PYTHON) -m venv .venv \
	  && $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' \
	  && $(BIN)/python -m pip install --quiet --editable '.[cli,embedded]' --group test; \
	fi
	@touch $@

$(LINT_STAMP): $(STAMP)
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --group lint; \
	else \
	  $(BIN)/python -m pip install --quiet --group lint; \
	fi
	@touch $@

demo: $(STAMP) ## run the main job on the embedded server; DIR=folder names its input
	@$(BIN)/tasklib demo $(if $(DIR),"$(DIR)") $(ARGS)

# The plan tests fill tables with a million rows; a tenth of that shows the same, and sooner.
test: $(STAMP) ## set everything up and run the tests; ARGS='-k word' narrows them
	@TASKLIB_TEST_SCALE=$${TASKLIB_TEST_SCALE:-0.1} $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(LINT_STAMP) ## format check, lint, import layers, migrations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/squawk --assume-in-transaction --exclude $(SQUAWK_EXCLUDE) sql/migrations/*.sql

format: $(LINT_STAMP) ## rewrite the Python files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(LINT_STAMP) ## pyright, strict
	$(BIN)/pyright --project pyproject.toml

audit: $(LINT_STAMP) ## known vulnerabilities of what is installed; fails for findings only
	@$(BIN)/python tests/audit.py

check: lint types test ## all of the above checks

docs: $(STAMP) ## write docs/sql-reference.md from the COMMENTs
	@$(BIN)/python tests/docs/sql_reference.py

servers: $(STAMP) ## the tests on PostgreSQL 14 to 18 and through PgBouncer, an hour; ARGS='--short 17'
	@JOBS=$(JOBS) $(BIN)/python tests/matrix.py $(ARGS)

failover: $(STAMP) ## ten failovers under load, synchronous and asynchronous
	@TASKLIB_TEST_FAILOVERS=$${TASKLIB_TEST_FAILOVERS:-10} $(BIN)/python -m pytest -n 0 tests/failover $(ARGS)

torture: $(STAMP) ## ten minutes of kills, restarts and cuts, then a count; ARGS='--minutes 2', '--mutants'
	@$(BIN)/python tests/torture/torture.py $(ARGS)

bench: $(STAMP) ## measure beside other queues; ARGS='--only drain1 --peers tasklib,graphile'
	@$(BIN)/python tests/bench/bench.py $(ARGS)

soak: $(STAMP) ## a million tasks through one worker; ARGS='--held' beside a held snapshot
	@$(BIN)/python tests/bench/soak.py $(ARGS)

model: $(STAMP) ## the SQL beside its model, for long; ARGS='--steps 1000000' or '--minutes 30'
	@$(BIN)/python tests/model/run.py $(ARGS)

fuzz: $(STAMP) ## hostile arguments for every SQL function, for long; ARGS=--calls=1000000
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

upgrade: $(STAMP) ## from every release to this schema under load; ARGS='--short --to future'
	@$(BIN)/python tests/upgrade/run.py $(ARGS)

bench-sql: $(STAMP) ## CPU and WAL a task, beside a classic one-table queue
	@$(BIN)/python tests/bench/bench_sql.py $(ARGS)

mutants: $(STAMP) ## put hand-made faults in, one at a time; each is caught; ARGS='--only lease --jobs 2'
	@$(BIN)/python tests/mutants/mutate.py $(ARGS)

# PG_CONFIG names the server; DESTDIR goes before its folder, for packagers.
install-extension: $(STAMP) ## put the extension's files into the server of PG_CONFIG=pg_config
	@$(BIN)/tasklib sql --extension "$(DESTDIR)$$($(PG_CONFIG) --sharedir)/extension"

build: $(STAMP) ## wheel and sdist into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

release: $(STAMP) ## freeze this version's install script, and keep its wheel for the tests
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("pg-tasklib"))'); \
	file=sql/releases/$$version.sql; \
	test ! -e $$file || { echo "make: $$file exists; raise the version in pyproject.toml" >&2; exit 1; }; \
	grep -qF "$$version" CHANGELOG.md || { echo "make: CHANGELOG.md says nothing about $$version" >&2; exit 1; }; \
	mkdir -p sql/releases && $(BIN)/tasklib sql > $$file && echo "wrote $$file"
	@$(BIN)/python -m build --wheel --no-isolation --outdir tests/upgrade/wheels . >/dev/null \
	  && ls tests/upgrade/wheels

clean: ## remove what was made: .venv, caches, dist; the embedded data in .tasklib stays
	rm -rf .venv .bench dist build .pytest_cache .ruff_cache .import_linter_cache
	find python tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
