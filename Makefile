# Two commands: `make run` and `make test`. Both install what they need into .venv first.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile \
	--constraint constraints.txt

# Python compiles what it imports, once. Most of what is installed is never imported.
unexport PYTHONDONTWRITEBYTECODE

# Three processes side by side, with one thread each: on two cores, one of them often waits for a
# server or a child. A file is run by one of them, so that what its tests share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --quiet

# All install into one environment.
.NOTPARALLEL:
.PHONY: run test test-fast test-scale test-oldest soak audit lint docs bench suggestions clean

run: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" mlflow run . -e main --env-manager local --experiment-name lrrt

test: .venv/installed-test lint
	$(PYTEST) -m "not scale" --durations=10

# Several processes, clusters and databases, up to 5 minutes. What is not installed here is skipped.
test-scale: .venv/installed-scale
	$(PYTEST) -m scale --dist load -ra --durations=10

# What to run at every change: the range test, tasks and data, and one run through each command.
test-fast: .venv/installed-test
	$(PYTEST) -m "not slow and not scale" tests/lrrt_stage tests/pipeline/data tests/pipeline/models \
		tests/pipeline/task tests/pipeline/decide tests/test_project.py \
		tests/mlflow_project/test_every_command.py \
		--ignore tests/lrrt_stage/adapters --ignore tests/lrrt_stage/plots

# The packages on the oldest versions that pyproject.toml allows, in an environment of its own.
test-oldest: OLDEST := .venv/oldest
test-oldest:
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	grep -oE '"[A-Za-z-]+>=[0-9.]+' pyproject.toml | sed '/setuptools/d; s/"//; s/>=/==/' > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/oldest.txt \
		--editable ".[fastai,lightning,photos,transformers]" hypothesis pytest pytest-xdist
	$(subst $(BIN),$(OLDEST)/bin,$(PYTEST)) -ra \
		tests/lrrt_stage tests/pipeline tests/mlflow_project
	rm -rf $(OLDEST)

# What shows after hundreds of times only, and 5,000 examples of every property: up to 20 minutes.
soak: .venv/installed-test
	HYPOTHESIS_PROFILE=soak $(PYTEST) --dist load -m "soak or hypothesis" -rP --durations=10

# Known vulnerabilities of the pinned packages. It asks pypi.org.
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip
	rm -rf .venv/audit

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

docs: .venv/installed-docs
	$(BIN)/python docs/reference/generate.py
	$(BIN)/mkdocs build --strict

bench: .venv/installed-test
	$(BIN)/python -m benchmarks.performance

suggestions: .venv/installed-benchmarks
	$(BIN)/python -m benchmarks.suggestions

clean:
	rm -rf .venv

# The last of what venv makes: an environment that was cut off is made again.
.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/installed: EXTRA :=
.venv/installed-test: EXTRA := [test]
.venv/installed-docs: EXTRA := [docs]
.venv/installed-benchmarks: EXTRA := [benchmarks]
.venv/installed-scale: EXTRA := [scale]
.venv/installed .venv/installed-test .venv/installed-docs .venv/installed-benchmarks \
.venv/installed-scale: \
		pyproject.toml constraints.txt | .venv/bin/pip
	@echo "installing (torch with CUDA is about 5 GB, a few minutes)"
	$(PIP) --editable ".$(EXTRA)"
	touch .venv/installed $@
