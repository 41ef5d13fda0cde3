# Two commands matter: `make demo` and `make test`. Each makes its own virtual environment if there is none.
PYTHON ?= python3
VENV ?= .venv
# A plain `torch` would resolve to gigabytes of CUDA libraries on Linux; override TORCH to choose another build.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# One process more than there are cores, because tests wait for servers and other processes, too.
WORKERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")
# A file's tests stay together, because they share what they have trained.
PARALLEL ?= --numprocesses $(WORKERS) --dist loadfile --durations 20
# All of them, unless some are named.
TESTS ?= tests
# CI leaves out those that are marked `release`, too.
SLOW ?= slow
LOWER_TESTS ?= tests/adapter tests/artifact tests/data tests/gradients tests/hub/test_publish.py tests/hub/test_resolve.py tests/objectives \
    tests/test_base_model.py tests/test_model.py tests/test_package.py tests/training/test_trainer.py

.PHONY: demo test test-slow test-lower-bounds lint bench docs package format clean

demo: $(VENV)/.installed
	$(BIN)/python -m tests.hub_server exec -- $(BIN)/gradiend-hub demo --repo-id alice/pronouns-3sg-3pl

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(TESTS)

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist load --durations 20 -m "$(SLOW)"

# The oldest releases that pyproject.toml admits, in an environment of their own.
test-lower-bounds: $(VENV)-lower/.installed
	$(VENV)-lower/bin/python -m pytest $(PARALLEL) -m "not slow" $(LOWER_TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation, build/site; a warning, e.g. of a broken link, fails.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --clean --quiet

# Source archive and wheel in dist, and the wheel with what it asks for in an environment of its own, out of the checkout's sight.
package: $(VENV)/.installed
	rm -rf dist build/lib $(VENV)-package
	$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-package/bin/python -m pip install --quiet dist/*.whl
	$(VENV)-package/bin/python -m pip check
	cd $(VENV)-package && bin/gradiend-hub --version

bench: $(VENV)/.installed
	$(BIN)/python -m tests.benchmarks

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,energy,explorer]"
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)-lower/.installed: pyproject.toml tests/lower_bounds.txt
	$(PYTHON) -m venv $(VENV)-lower
	$(VENV)-lower/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)-lower/bin/python -m pip install --quiet --editable ".[dev]" --constraint tests/lower_bounds.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lower $(VENV)-package out build dist *.egg-info
