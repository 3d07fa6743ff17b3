# `make demo`, `make test` and `make test-full` need Python 3.11 to 3.13 with venv, a C++ compiler (g++) and access to a Python package index.
PYTHON ?= $(firstword $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name; done))
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-full test-bluez test-board lint bench bench-goals clean

# An environment that is complete serves as it is; without one only what the demo needs is installed.
demo: $(if $(wildcard $(VENV)/.installed),$(VENV)/.installed,$(VENV)/.demo)
	$(BIN)/armlet demo --out demo

# Both cores are at work, then the tests that measure have the machine to themselves, and are not traced.
PYTEST := $(BIN)/python -m pytest --timeout 60 --durations=20 --durations-min=1
WORKERS ?= 2

# What tells a developer whether he broke something: 10 minutes at most on two cores.
test: lint
	$(PYTEST) -n $(WORKERS) -m "not full and not alone"
	$(PYTEST) -m "alone and not full"

# Everything, with the share of branches that it runs: 25 minutes at most on two cores, downloads aside.
test-full: lint
	rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report= -n $(WORKERS) -m "not alone"
	$(PYTEST) -m alone
	$(BIN)/python -m coverage report --include='runtime/*' --fail-under=90
	$(BIN)/python -m coverage report --include='firmware_bridge/*' --fail-under=90

# Of the tests those on real BlueZ, with what is said in there; CLOCK=real runs them in the host's time, not in virtual time.
test-bluez: $(VENV)/.installed
	CLOCK=$(or $(CLOCK),virtual) $(BIN)/python -m pytest --no-skips tests/runtime/bluez -s

# Both machines under QEMU, with the power cut KILLS times; DEMO=demo plays what `make demo` left there.
KILLS ?= 20
test-board: $(VENV)/.installed
	KILLS=$(KILLS) MACHINES=virt,raspi3b $(BIN)/python -m pytest --no-skips tests/test_emulated_board.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m pytest benchmarks --benchmark-json benchmarks.json

# A figure that misses its goal fails; on a machine with nothing else to do.
bench-goals: $(VENV)/.installed
	$(BIN)/python -m pytest benchmarks --goals --benchmark-json benchmarks.json

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(BIN)/python -m pip install --quiet -e '.[all]'
	touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.torch
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

# What is missing is said in one sentence, before anything is written. torch is named first and pinned, so that its CPU
# build is taken (uv asks PyTorch's own index for the build that fits this machine's GPU, or none) and not the newest one with
# CUDA, of several GB; where that index is out of reach, pip's own comes next. TORCH=cpu or TORCH=cu130 chooses the build.
TORCH ?= auto
$(VENV)/.torch:
	@[ -n "$(PYTHON)" ] || { echo "armlet needs Python 3.11 to 3.13, and there is none: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "armlet's development side needs Python 3.11 to 3.13; set PYTHON=... ($(PYTHON) is another)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module with pip: apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; exit 1; }
	@command -v g++ >/dev/null || { echo "there is no C++ compiler: apt-get install g++"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__.split("+")[0] != "2.13.0")' 2>/dev/null || \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH) torch==2.13.0 2>/dev/null || \
		{ echo "PyTorch's own index is out of reach: taking pip's build of torch, which on x86-64 may bring CUDA (several GB)"; \
		$(BIN)/python -m pip install --quiet torch==2.13.0; }
	touch $@

clean:
	rm -rf $(VENV) demo dist build
