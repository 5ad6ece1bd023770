# Two commands set everything up on a fresh machine with Python 3.11 or newer.
#   make quickstart   install, train a small sweep on real images, draw its figure
#   make test         install with the test tools, run every test that is not slow

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs
PARALLEL ?= --numprocesses=auto --dist=loadscope
SWEEP = --experiment=classification.batch_norm --workdir=$(WORKDIR)

.PHONY: quickstart test slow lint gallery clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test]
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python -m launch.sweep $(SWEEP) --sweep=learning_rates --executor=vmap
	@echo
	@echo "The figures:"
	@$(BIN)/python -m launch.figures $(SWEEP)

test: $(VENV)/tested
	$(BIN)/python -m pytest $(PARALLEL)

slow: $(VENV)/tested
	$(BIN)/python -m pytest $(PARALLEL) --slow

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

gallery: $(VENV)/installed
	$(BIN)/python -m launch.gallery

clean:
	rm -rf $(VENV) runs gallery
