# Everything a developer runs. The environment in .venv is made on first use and again only when
# pyproject.toml or constraints.txt change. Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
ROOMS := tidegraph.py stream graph_store learner replay serving deploy tests

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench lock clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

demo: $(READY) ## replay the shipped sample of KuaiRand; the report is out/demo/report.html
	$(BIN)/tidegraph replay --dataset kuairand-pure --out out/demo \
	  --systems online,frozen,retrain,popularity,recent_popularity,covisitation,item_knn,counting

test: check ## run every check and every test, with coverage; gets itself a Redis and a Kafka
	$(BIN)/pytest --cov --cov-report=term

check: $(READY) ## lint, format, types, layers
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/ruff format --check $(ROOMS)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## put the code in the house's form
	$(BIN)/ruff check --fix $(ROOMS)
	$(BIN)/ruff format $(ROOMS)

bench: $(READY) ## measure the rooms beside their peers (quiet machine, minutes)
	for name in graph learner stream pipeline serving; do $(BIN)/tidegraph bench $$name || exit; done

lock: $(READY) ## compile constraints.txt anew from pyproject.toml
	$(BIN)/uv pip compile --upgrade --python-version 3.11 --extra dev --no-emit-index-url \
	  --custom-compile-command "make lock" --quiet --output-file constraints.txt pyproject.toml

clean: ## remove the environment and everything that was generated
	rm -rf .venv out build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "tidegraph needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv: some minutes, about 3 GB with torch's CUDA on Linux."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
