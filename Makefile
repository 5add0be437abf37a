# Every target needs only make and Python 3.11 or newer; what else it needs goes into .venv.
PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help .venv install demo serve test lint bench

help: ## list the targets
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo 'Another Python: make PYTHON=/path/to/python3.11 .venv'

.venv: .venv/.installed ## create or update .venv, which the other targets do by themselves

install: .venv/.installed ## the same, and say how to use it
	@echo 'Ready: run .venv/bin/featurestore, or put it on the PATH with  . .venv/bin/activate'

demo: .venv/.installed ## run the flights example from definitions to a prediction's features
	@echo 'Running demo.py'
	@.venv/bin/python -P demo.py

serve: .venv/.installed ## serve definitions/ over HTTP until Ctrl-C
	@echo 'Serving definitions/; Ctrl-C ends it'
	@.venv/bin/featurestore --repo definitions serve

# -P keeps the checkout off sys.path, so that the tests meet the installed package: in CI, that is the wheel. Test files run side by
# side, on up to four cores.
test: .venv/.installed ## run the tests; ARGS= goes to pytest
	@echo 'Running the tests'
	@.venv/bin/python -P -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: .venv/.installed ## check style, format and types
	@echo 'Checking style (ruff check)'
	@.venv/bin/ruff check
	@echo 'Checking format (ruff format --check)'
	@.venv/bin/ruff format --check
	@echo 'Checking types (mypy)'
	@.venv/bin/mypy

bench: .venv/.installed ## run the benchmarks; ARGS= goes to them
	@echo 'Running the benchmarks'
	@.venv/bin/python -m benchmarks $(ARGS)

# Written last by a complete installation; holds the checkout's path, as the programs in an environment name theirs.
.venv/.installed: pyproject.toml
	@sh tools/venv.sh '$(PYTHON)'

# A checkout that was moved, or whose Python has gone, needs its environment anew.
ifneq ($(shell test -x .venv/bin/python && cat .venv/.installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/.installed
endif
