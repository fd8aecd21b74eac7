# Each target creates what it needs, on a machine with only Python (3.11 or newer) and make, and does nothing twice.
#   make demo    the whole system on real images, minutes on two CPU cores
#   make test    the tests that take minutes in all; make test-cluster and make test-slow run the rest
#   make check   lint, format, types
#   make bench   the benchmarks: ratios of interleaved runs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

# The CUDA version of torch's and DALI's packages, 13 or 12: the environment's, so that `make setup CUDA=12` is said once.
CUDA ?= $(or $(patsubst $(VENV)/ready-cuda%,%,$(firstword $(wildcard $(VENV)/ready-cuda*))),13)
LOCK_13 := requirements.lock
LOCK_12 := requirements-cuda12.lock
LOCK := $(LOCK_$(CUDA))
READY := $(VENV)/ready-cuda$(CUDA)
ifeq ($(LOCK),)
$(error CUDA is $(CUDA): give CUDA=13 or CUDA=12)
endif

# These compute on the CPU, also where there is a GPU: they start several processes, and one GPU takes one.
demo test test-cluster test-slow test-torch211 test-times golden chaos attack: export CUDA_VISIBLE_DEVICES :=

# Bytecode is written even if the shell forbids it: without bytecode every process compiles the project anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-cluster test-slow test-torch211 test-times golden chaos attack slurm-up slurm-down check format bench bench-gpu \
  lock check-locks clean
.DEFAULT_GOAL := setup

setup: $(READY)

# uv installs the locked packages in parallel, which saves minutes on 6 GB of wheels. uv itself is in the environment, too.
# Packages that the other lock alone names go first: they hold files of the same names (nvidia/dali, nvidia/cudnn).
$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11: set PYTHON=/path/to/python3.11 or newer" >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot create environments: install the package python3-venv, or set PYTHON=" >&2; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@rm -f $(VENV)/ready*
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python \
	  $$(awk -F '[= ]' '/^[a-z0-9]/ { if (FILENAME == "$(LOCK)") here[$$1]; else if (!($$1 in here)) print $$1 }' $(LOCK) $(LOCK_13) $(LOCK_12))
	UV_HTTP_TIMEOUT=600 $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# These are the commands for ImageNet (README), with other paths.
demo: $(READY)
	$(BIN)/python data_prep/digits.py demo/images
	$(BIN)/python data_prep/shard_imagenet.py demo/images demo/dataset --name digits \
	  --statistics-size 32 --statistics-short-side 36
	$(BIN)/python launch/local.py --config configs/demo.yaml --procs 2 --arch resnet8
	$(BIN)/python launch/local.py --config configs/demo.yaml --procs 2 --arch resnet14
	$(BIN)/python -m pipeline.evaluate demo/runs/resnet8-seed0 --protocol center,ten-crop
	$(BIN)/python -m pipeline.evaluate demo/runs/resnet14-seed0 --protocol center,ten-crop
	$(BIN)/python -m pipeline.ensemble demo/runs/resnet8-seed0 demo/runs/resnet14-seed0
	$(BIN)/python -m pipeline.mistakes demo/runs/resnet14-seed0
	$(BIN)/python -m pipeline.predict demo/runs/resnet14-seed0 demo/images/val/3/0059.jpg
	$(BIN)/python -m pipeline.report --runs demo/runs --out demo/report.html
	@echo
	@echo "Trained, tested and averaged: two nets that read handwritten digits. What there is to look at:"
	@echo "  the report: curves, errors, the paper's tables   demo/report.html"
	@echo "  the digits that the net gets wrong               demo/runs/resnet14-seed0/scores/center-val-00000400.mistakes/mistakes.png"
	@echo "  the digit that it was asked about                demo/images/val/3/0059.jpg"
	@echo "This command shows it all in a browser, in MLflow (runs, curves; the report and the mistakes are artifacts there):"
	@echo "  $(BIN)/python -m pipeline.tracking open demo/runs"

# Needs no SLURM, Chromium, root or GPU. Four workers even on two cores: half of the time, tests wait for processes.
WORKERS ?= 4
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -r s
test: $(READY)
	$(PYTEST) --numprocesses $(WORKERS) --dist worksteal -m "not slow and not gpu and not cluster and not browser"

# The tests that need more than Python: real SLURM and Ray clusters on this machine with everything that interrupts them, and the
# report in Chromium. A test that cannot run here is skipped, with one line.
test-cluster: $(READY)
	$(PYTEST) -m "cluster or browser"

test-slow: $(READY)
	$(PYTEST) --numprocesses 3 --dist worksteal -m "slow and not gpu and not cluster and not browser"

# Python 3.12 and torch 2.11, in an environment of its own (7 GB): what depends on torch and DALI.
PYTHON312 ?= python3.12
TORCH211 := build/torch211
test-torch211: $(TORCH211)/ready
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(TORCH211)/bin/python -m pytest -r s --numprocesses $(WORKERS) --dist worksteal \
	  -m "not slow and not gpu and not cluster and not browser" \
	  tests/pipeline/data tests/pipeline/models tests/pipeline/process tests/pipeline/training tests/pipeline/evaluation \
	  tests/pipeline/handover tests/test_one_update.py tests/test_golden.py tests/launch/test_launchers.py

$(TORCH211)/ready: requirements.lock pyproject.toml | $(READY)
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "make: $(PYTHON312) is not Python 3.12: set PYTHON312=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON312) -m venv $(TORCH211)
	echo "torch==2.11.*" > $(TORCH211)/constraints.txt; cp requirements.lock $(TORCH211)/requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.12 --no-header --no-emit-index-url --group dev --extra cuda13 \
	  pyproject.toml --constraint $(TORCH211)/constraints.txt --output-file $(TORCH211)/requirements.lock >/dev/null
	UV_HTTP_TIMEOUT=600 $(BIN)/uv pip install --quiet --compile-bytecode --python $(TORCH211)/bin/python -r $(TORCH211)/requirements.lock
	@touch $@

# The CPU seconds of every case of `make test`, the most expensive first (tests/budget.py); fails if one is over its budget. For a
# quiet machine.
test-times: $(READY)
	rm -f build/times.jsonl; mkdir -p build
	$(PYTEST) -m "not slow and not gpu and not cluster and not browser" --strict-budget --times build/times.jsonl; \
	  code=$$?; $(BIN)/python -m tests.budget build/times.jsonl && exit $$code

# Kills a training at random moments, on 1, 2, 4 or 8 processes each time, and compares it with an undisturbed one. CI: KILLS=50.
KILLS ?= 1000
chaos: $(READY)
	$(BIN)/python -m tests.chaos --kills $(KILLS)

# Damages data, checkpoints and run folders, closes outputs, cuts MLflow off ... thousands of times, and counts what comes of it. CI: SHORT=1.
SHORT ?=
SEED ?= 0
attack: $(READY)
	$(BIN)/python -m tests.attack --seed $(SEED) $(if $(SHORT),--short)

# Regenerates tests/golden/: what runs compute and what users may type. Fails if results have changed and TRAJECTORY
# (pipeline/run/config.py) was not raised. Review the diff.
golden: $(READY)
	$(BIN)/python -m tests.golden
	$(BIN)/python -m tests.golden.options
	$(BIN)/python -m tests.golden.completion

# A SLURM of four nodes to experiment with (root; apt packages slurmctld slurmd slurm-client munge iproute2).
slurm-up: $(READY)
	$(BIN)/python tests/cluster/slurm_cluster.py up

slurm-down: $(READY)
	$(BIN)/python tests/cluster/slurm_cluster.py down

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python bench/loader.py
	$(BIN)/python bench/augmentations.py
	$(BIN)/python bench/pixels.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/shard.py
	$(BIN)/python bench/evaluate.py
	$(BIN)/python bench/tracking.py
	$(BIN)/python bench/step.py
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/end_to_end.py

# Everything that one NVIDIA GPU can tell, in stages with limits; tables in build/gpu. DRY=1: tiny sizes on a CPU, whether it runs.
DRY ?=
IMAGES ?=
bench-gpu: $(READY)
	$(BIN)/python -m bench.gpu --out build/gpu $(if $(DRY),--dry-run) $(if $(IMAGES),--images $(IMAGES))

# Two locks with the newest packages; the second differs from the first only where CUDA 12 asks for it.
lock: $(READY)
	rm -rf build/locks; mkdir -p build/locks
	$(call resolve,13)
	cp build/locks/$(LOCK_13) build/locks/$(LOCK_12)
	$(call resolve,12)
	mv build/locks/*.lock .

# Both locks are what pyproject.toml asks for, and the package index still has what they name, for this machine's Python.
check-locks: $(READY)
	rm -rf build/locks; mkdir -p build/locks; cp $(LOCK_13) $(LOCK_12) build/locks
	$(call resolve,13)
	$(call resolve,12)
	for lock in $(LOCK_13) $(LOCK_12); do \
	  diff $$lock build/locks/$$lock || { echo "make: $$lock no longer fits pyproject.toml or the package index: run 'make lock'" >&2; exit 1; }; \
	  $(BIN)/uv pip install --quiet --dry-run --python $(BIN)/python -r $$lock || exit 1; \
	done

# Resolves the lock of CUDA $(1) in build/locks; what stands in that file already keeps its version where it can.
define resolve
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url --group dev --extra cuda$(1) \
	  pyproject.toml --output-file build/locks/$(LOCK_$(1)) >/dev/null
	sed -i "1i # Every package that set-up installs for CUDA $(1), pinned; written by 'make lock' from pyproject.toml. Names and versions only, no addresses." \
	  build/locks/$(LOCK_$(1))
endef

clean:
	rm -rf demo build .mypy_cache .ruff_cache .pytest_cache
