# `make demo` and `make test` do everything on a machine that has python3 (3.11 or newer), venv and make.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: install demo test check fast-test long-test docs lock head clean

install: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "siclip-platform needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/siclip-platform demo --out $(OUT)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not long"

fast-test: install
	$(BIN)/python -m pytest -q -m "not gpu and not slow and not chaos and not long"

long-test: install
	$(BIN)/python -m pytest -m "long and not gpu" --timeout 3600

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, into runs/site; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --quiet -o requirements.lock

# A local Ray head, from this project's environment and in this folder, with token authentication.
head: install
	PATH="$(CURDIR)/$(BIN):$$PATH" RAY_AUTH_MODE=token ray get-auth-token --generate >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" RAY_AUTH_MODE=token ray start --head --num-cpus=6

clean:
	rm -rf .venv
