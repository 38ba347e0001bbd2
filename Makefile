# make demo   set up, then train a policy through the fused loss and compare it with the exact answer
# make test   set up, then run the tests            make test-all   the long ones as well
# make check  lint, format, types, tests            make bench      the head's benchmark on this machine
# PIP_ARGS    options for every pip install, for instance another index

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -q -c constraints.txt $(PIP_ARGS)
READY := $(VENV)/.ready

.PHONY: setup demo test test-all check bench clean

setup: $(READY)

$(READY): constraints.txt pyproject.toml setup.py
	test -x $(PY) || python3 -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@

demo: $(READY)
	$(PY) -m toy.bandit

test: $(READY)
	$(PY) -m pytest -m "not slow"

test-all: $(READY)
	$(PY) -m pytest

check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -m "not slow"

bench: $(READY)
	$(PY) -m benchmarks.bench_head

clean:
	rm -rf $(VENV) build *.egg-info
