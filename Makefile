# `make demo` and `make test` do everything on a machine that has python3 (3.11 or newer), venv and make.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: install demo test chromium check audit fast-test long-test gpu-check docs lock head clean

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

# In CI also with a browser, for the tests of the report's pages.
test: install $(if $(filter true,$(CI)),chromium)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and not long"

# Debian's chromium, where it is missing and can be installed; those tests are skipped without it.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && export DEBIAN_FRONTEND=noninteractive && \
		timeout 60 apt-get update -qq && timeout 240 apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	} || echo "no Chromium, and it could not be installed (apt-get install chromium): the report's browser tests are skipped"

fast-test: install
	$(BIN)/python -m pytest -q -m "not gpu and not slow and not chaos and not long"

long-test: install
	$(BIN)/python -m pytest -m "long and not gpu" --timeout 3600

# Ten minutes on a machine with a card: everything that nothing else can run. Writes benchmarks/results/gpu/CARD.json.
gpu-check: install
	$(BIN)/python scripts/gpu_check.py

# The audit waits for a server while ruff and mypy compute; what it finds is listed and fails nothing.
check: install
	$(BIN)/python scripts/audit.py & audit=$$!; \
		$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-logo && $(BIN)/mypy; status=$$?; wait $$audit; exit $$status

# The same list, with exit code 1 where something is found or nothing could be audited.
audit: install
	$(BIN)/python scripts/audit.py --strict

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
