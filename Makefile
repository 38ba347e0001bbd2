# make demo   set up, train a small model by DeepSpeed on preferences of a known reward, compare with the exact answer
# make test   set up, then run the tests            make test-all   the long ones as well
# make check  lint, format, types, tests            make bench      this processor: docs/performance.md (15 minutes)
# make bench-check     the head's ratios against the committed results of this device class (five minutes)
# make sanitize        the C++ kernels under AddressSanitizer and UBSan (three minutes; wants g++)
# make machine-code    what the Triton kernels compile to, every card and kernel (no GPU wanted; six minutes)
# make triton-versions the same with Triton 3.6 and the newest, in throw-away environments
# make gpu-check       on a GPU: tests, ceilings, the head and its peers, within ten minutes; with the python3 that has
#                      torch and Triton and, of ours, nothing else (GPU_PY=...; GPU_ARGS="--items 1" for a part of it)
# make gpu-tune        on a GPU: measures tiles, writes this card's row of the library's table, then the head again
# make gpu-step        on a GPU: whole steps of an 8B Llama shape, and the trainer against TRL's
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

.PHONY: setup demo test test-all check bench bench-check soak synthetic machine-code triton-versions sanitize gpu-check gpu-tune gpu-step clean

setup: $(READY)

$(READY): constraints.txt pyproject.toml setup.py $(shell find csrc -type f)
	test -x $(PY) || python3 -m venv $(VENV)
	$(PIP) setuptools wheel ninja torch  # before the package: its C++ kernels are built against torch
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

sanitize: $(READY)
	$(PY) -m tools.sanitize

gpu-check:
	$(GPU_PY) -m benchmarks.gpu.check $(GPU_ARGS)

gpu-tune:
	$(GPU_PY) -m benchmarks.gpu.tune $(GPU_ARGS)

gpu-step:
	$(GPU_PY) -m benchmarks.gpu.step $(GPU_ARGS)

synthetic: $(READY)
	$(PY) experiments/synthetic.py all

soak: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m tools.soak

bench: $(READY)
	$(PY) -m benchmarks.suite

bench-check: $(READY)
	$(PY) -m benchmarks.guard

clean:
	rm -rf $(VENV) build *.egg-info
