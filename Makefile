# Two commands do all the set-up: `make limit` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# setuptools warns in a dozen lines that an editable package could be shadowed; nothing here does.
PIP = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: limit test test-slow test-peers lint format docs docs-tools smoke clean

limit: $(VENV)/.installed
	@echo "Trains FC5 on digits, predicts, searches and prunes: about two minutes on 2 quiet cores."
	$(BIN)/python experiments/pruning_limit.py

test: $(VENV)/.installed
	@echo "Runs the tests: about 12 minutes on 2 quiet cores, less where programs are compiled already."
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The comparisons with PyTorch and curvlinops themselves, not with what is kept of them.
test-peers: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m pytest tests/models/test_models.py tests/curvature/test_curvature_peers.py -k "torch or curvlinops or matfree"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of docs/ are written from committed results; the site is built from the pages.
docs: $(VENV)/.docs-installed
	$(BIN)/python experiments/pages.py
	git diff --exit-code -- README.md docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

docs-tools: $(VENV)/.docs-installed

$(VENV)/.docs-installed: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

# The wheel alone, in a fresh environment outside of the repository.
smoke:
	PYTHON=$(PYTHON) bash .ci/smoke

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installs into $(VENV): about a minute, once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) -c constraints.txt -e '.[experiments,dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
