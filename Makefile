# Every target makes the environment first (.venv; about two minutes once, then nothing). `make` lists the targets.
#   make demo ARGS="--seed 7 --from-scratch"      make test ARGS="tests/cache -x"      make env PYTHON=/path/to/python3.12

# The first of these that vLLM has wheels for. Looked up only when the environment is asked for.
PYTHON = $(shell for p in python3 python3.11 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
# The environment comes without compiled files, so a process that may not keep them compiles torch and all anew.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=
# A file's tests stay together, since they share what is costly to make, and files keep the order of tests/conftest.py,
# the longest first. WORKERS=0 runs all in one process.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help env demo test test-slow check format types layers docs bench clean
help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

env: ## make or repair the environment
	@python="$(PYTHON)"; test -n "$$python" || { \
		echo "error: no Python 3.11, 3.12 or 3.13 on the PATH; install one or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" scripts/environment.py

demo: env ## the whole story on the embedded benchmark
	$(BIN)/vgid demo $(ARGS)

test: env ## the tests, without the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: env ## the slow tests
	$(PYTEST) -m slow $(ARGS)

check: env ## format, lint, types, layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory types layers
	$(PYTEST) -m "not slow" $(ARGS)

format: env ## write the format and the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without the variable pyright asks the network for its newest version.
types: env
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

layers: env
	$(BIN)/lint-imports

docs: env ## write the command reference anew
	$(BIN)/python -m typer vgid.pipeline.cli utils docs --name vgid --title Commands --output docs/cli.md

bench: env ## the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the environment, caches and builds; results in runs/ stay
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
