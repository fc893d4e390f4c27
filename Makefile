# hpcdml. `make` lists the targets. PYTHON=python3.12 chooses the interpreter; EXTRAS=test,lint,docs what is installed.

PYTHON ?= python3
RANKS ?= 3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := python -m pip install -qq --disable-pip-version-check -c constraints.txt

# An MPI is installed only where there is no sign of one: a cluster's own must not be hidden behind another. An srun
# without a Slurm that answers is no sign.
OUTSIDE := $(shell printf %s "$$PATH" | tr ':' '\n' | grep -vxF '$(CURDIR)/$(BIN)' | paste -s -d: -)
SITE_MPI := $(shell PATH='$(OUTSIDE)'; { for tool in mpirun mpiexec mpicc; do command -v $$tool; done; \
    timeout 5 sinfo >/dev/null 2>&1 && command -v srun; } | head -n 1)
EXTRAS ?= test,lint,docs$(if $(SITE_MPI),,$(if $(shell uname -s | grep Linux),$(comma)mpi))
comma := ,

# What Open MPI 5 and 4 need for more ranks than cores, and in containers, where everybody is root. They go through the
# environment, as other MPIs would stumble over unknown flags.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export OMPI_MCA_rmaps_base_oversubscribe := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

DEMO := hpcdml train --dataset digits --model mlp --lr 0.2 --epochs 200 --overwrite

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## train on real data with overlap, then without, and compare; results in runs/
	mpirun -n $(RANKS) $(DEMO) --policy losp --output runs/demo
	mpirun -n $(RANKS) $(DEMO) --policy bsp --output runs/demo-bsp
	@echo
	hpcdml report runs/demo
	@echo
	@hpcdml report runs/demo --compare runs/demo-bsp

test: lint docs ## lint, documentation, then the tests without MPI, then those under mpirun
	python -m pytest -m 'not mpi' --ignore=tests/mpi
	mpirun -n 3 python -m pytest --with-mpi -m mpi -x --timeout-method=thread -p no:cacheprovider tests/mpi

lint: $(READY) ## style and types
	ruff check .
	ruff format --check .
	mypy

docs: $(READY) ## the documentation, as build/docs/index.html; a warning is an error
	python -m sphinx -W --keep-going -q -b html docs build/docs

clean: ## remove what builds, tests and the demo leave; .venv and other runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo runs/demo-bsp
	find hpcdml tests docs -name __pycache__ -type d -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo 'hpcdml needs Python 3.10 or later: make PYTHON=python3.12, for one' >&2; exit 1; }
	@echo 'Setting up $(VENV) with [$(EXTRAS)]; the first time PyTorch is downloaded, which can take minutes.'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[$(EXTRAS)]'
	@$(if $(SITE_MPI),$(SITE_MPI_CHECK))
	@touch $@

# The wheel of mpi4py finds most MPIs by itself. Where it does not, or two ranks do not see each other, it is built
# against the site's, by the mpicc on the path.
define SITE_MPI_CHECK
echo 'Using the MPI of $(SITE_MPI).'; \
if ! { python -c 'from mpi4py import MPI' && \
       mpirun -n 2 python -c 'from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.Get_size() != 2)'; } \
       >/dev/null 2>&1; then \
    echo 'The wheel of mpi4py does not work with it; building mpi4py from source.'; \
    $(PIP) --force-reinstall --no-deps --no-cache-dir --no-binary mpi4py mpi4py; \
fi
endef
