# Two commands do everything on a fresh machine with Python >= 3.11, make and a package index:
#   make run    environment, install, quickstart: a study of three ways to teach a tiny model sums
#   make test   environment, install, tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# uv installs in a third of pip's time. It reads no pip.conf, so where what it needs is elsewhere, pip does it.
UV := UV_LINK_MODE=copy $(BIN)/python -m uv pip install --native-tls --quiet --python $(BIN)/python
INSTALL = $(UV) -c constraints.txt -e $(1) || { echo 'without uv:'; $(PIP) -c constraints.txt -e $(1); }
SITE = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# What the quickstart imports, in two processes, and what it imports late: all packages take twice as long.
COMPILE_RUN = PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import posttrain.runs.session, transformers.models.qwen3.modeling_qwen3' & \
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import sympy, scipy.signal, scipy.stats, pandas, matplotlib.pyplot, datasets, posttrain.runs.forking.warm'; \
	wait; site=$(SITE); $(BIN)/python -m compileall -qq -j 0 posttrain $$site/mlflow/store $$site/sqlalchemy $$site/alembic $$site/PIL || true
# All packages on all cores: pip does so on one. A file among them that is no valid Python, as test data of some are, is none of ours.
COMPILE = $(BIN)/python -m compileall -qq -j 0 posttrain $(SITE) || true
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
TORCH := 2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: run test slow slurm check format types lint floors bench clean

run: $(VENV)/.base
	$(BIN)/python -m posttrain study=quickstart

# Two processes with a thread each: the tests' small models gain little from a second thread.
test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

# The same of every case: each method under each strategy, long simulations, notebooks, kills of whole pipelines.
slow: $(VENV)/.dev
	$(PYTEST) -m slow

# On the cluster that this machine reaches; without one, on a SLURM of this machine, which is started for the tests where it does not run.
slurm: $(VENV)/.dev
	@set -e; if ! sinfo --noheader > /dev/null 2>&1; then \
		launchers/local_slurm status > /dev/null 2>&1 || trap 'launchers/local_slurm stop' EXIT; \
		settings=$$(launchers/local_slurm start); eval "$$settings"; fi; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/slurm

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/sft.py
	$(BIN)/python tests/benchmarks/dpo.py
	$(BIN)/python tests/benchmarks/dpo.py --long-answers
	$(BIN)/python tests/benchmarks/grpo.py
	$(BIN)/python tests/benchmarks/decoding.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# On a machine without an NVIDIA GPU the CPU build, which a package index may hold beside the others, or PyTorch's own index does;
# never the several GB of CUDA packages.
$(VENV)/.torch: | $(VENV)/bin/python
	@if [ "$$(uname)" = Darwin ] || command -v nvidia-smi > /dev/null; then $(PIP) 'torch==$(TORCH)'; \
	else $(PIP) 'torch==$(TORCH)+cpu' 2> /dev/null || $(PIP) 'torch==$(TORCH)+cpu' --index-url $(CPU_INDEX); fi
	@touch $@

$(VENV)/.base: pyproject.toml constraints.txt $(VENV)/.torch
	@$(PIP) uv 2> /dev/null || true
	@$(call INSTALL,.)
	@$(COMPILE_RUN)
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(call INSTALL,'.[dev]')
	@$(COMPILE)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
