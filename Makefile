# make demo   set up, train a small model by DeepSpeed on preferences of a known reward, compare with the exact answer
# make test   set up, then run the tests            make test-all   the long ones as well
# make check  lint, format, types, tests            make bench      the head's benchmark on this machine
# make machine-code    what the Triton kernels compile to, every card and kernel (no GPU wanted; six minutes)
# make triton-versions the same with Triton 3.6 and the newest, in throw-away environments
# make gpu-check       the tests that want a card, with the python3 that has torch and Triton (GPU_PY=...)
# make synthetic       the paper's synthetic experiments and the small transformer (13 minutes); files in experiments/out
# make soak            a thousand steps of the demo's training, killed ten times on the way (15 minutes; files in runs/soak)
# PIP_ARGS    options for every pip install, for instance another index

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -q -c constraints.txt $(PIP_ARGS)
READY := $(VENV)/.ready
GPU_PY := python3
# a file on one worker: its tests share runs that take a minute
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: setup demo test test-all check bench soak synthetic machine-code triton-versions gpu-check clean

setup: $(READY)

$(READY): constraints.txt pyproject.toml setup.py
	test -x $(PY) || python3 -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@

demo: $(READY)
	$(PY) -m train.demo

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m tools.machine_code
	$(PYTEST) -m "not slow"

machine-code: $(READY)
	$(PY) -m tools.machine_code

triton-versions:
	set -e; for wanted in triton==3.6.0 triton; do \
	  folder=$$(mktemp -d); grep -v ^triton constraints.txt > $$folder/constraints.txt; \
	  python3 -m venv $$folder/venv; \
	  $$folder/venv/bin/pip --disable-pip-version-check install -q -c $$folder/constraints.txt $(PIP_ARGS) \
	    torch $$wanted numpy setuptools; \
	  TRITON_CACHE_DIR=$$folder/cache $$folder/venv/bin/python -m tools.machine_code; \
	  rm -rf $$folder; \
	done

gpu-check:
	$(GPU_PY) -m expo_kernels
	$(GPU_PY) -m pytest tests/gpu -o addopts= -p no:cacheprovider

synthetic: $(READY)
	$(PY) experiments/synthetic.py all

soak: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m tools.soak

bench: $(READY)
	$(PY) -m benchmarks.bench_head

clean:
	rm -rf $(VENV) build *.egg-info
