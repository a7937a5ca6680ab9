# Everything works from a bare clone with only Python: each target makes the virtual environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUDY ?= studies/demo

.PHONY: install demo test test-commands test-rooms test-all lint format docs notebooks bench tpu clean

install: $(STAMP)

$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# On a TPU VM: a Python of its own, for the one there may be too old, and JAX for its chips.
tpu:
	$(PYTHON) -m pip install --quiet --user uv
	$(PYTHON) -m uv venv --quiet --allow-existing --python 3.12 $(VENV)
	$(PYTHON) -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[demo,gcs,tpu]'

demo: $(STAMP)
	$(BIN)/mde demo --study=$(STUDY)

# Two halves; `make -j2 test` runs them at once.
test: test-commands test-rooms

test-commands: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow' tests/commands

test-rooms: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow' --ignore=tests/commands

test-all: $(STAMP)
	$(BIN)/python -m pytest --hypothesis-profile=exploring

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/build/index.html
docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/build

# The notebooks out of their scripts.
notebooks: $(STAMP)
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.evaluators
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.trust $(if $(REGMIX),--regmix=$(REGMIX))
	test -z "$(REGMIX)" || $(BIN)/python -m benchmarks.regressors --regmix=$(REGMIX)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
