# make fit: install and run the main job.  make test: install and pass lint, types and tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: fit test install lint slow
fit: install
	$(BIN)/python -m zoo fit --config configs/few_shot/crlnet_omniglot.yaml

test: install lint
	$(BIN)/python -m pytest -n 2

slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	$(BIN)/python -m pip install -q uv
	$(BIN)/python -m uv pip install -q -e '.[test]'
	touch $@
