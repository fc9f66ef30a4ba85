# make run: set up .venv from the lock file and run the main job. make test: run the tests; make test-system: those that start,
# kill or install whole processes; make test-slow: long studies, by hand. make check: lint and types.
# make docs: the pages of docs/ as a site, in site/. make generate: what is made of the sources
# (accuracy/dispatch.py, docs/isa.md, conf/hardware/timing, rtl/tripath_pkg.sv, docs/configuration.md).
# make synth: areas and clock of the RTL (docs/rtl.md). make crossvalidate: small jobs through all paths against the baseline (docs/ci.md).
PYTHON ?= python3
UV_VERSION := 0.13.9
TORCH := torch==2.13.0
BIN := .venv/bin
# Processes of pytest: one more than two cores, for many tests wait for others.
WORKERS ?= 3
# Bytecode of packages, and of this one, is made when they are installed: some environments never write it
# (PYTHONDONTWRITEBYTECODE), and each run would begin with 15 seconds of compiling.
SYNC := UV_COMPILE_BYTECODE=1 UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never $(BIN)/uv sync --frozen --inexact --no-default-groups --quiet

PACKAGES := accuracy analytical cycle dllm hydra_plugins npu npu_compiler rtl tripath

.PHONY: run test test-system test-slow check crossvalidate docs generate synth clean

run: .venv/.run
	@$(BIN)/python -m tripath

test: .venv/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-system: .venv/.test
	$(BIN)/python -m pytest -m system -n 2 --dist loadfile

test-slow: .venv/.test
	$(BIN)/python -m pytest -m slow -n 2 --dist load

check: .venv/.test .venv/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

crossvalidate: .venv/.run
	@$(BIN)/python -m tripath experiment=ci

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# In the order in which one needs another; dispatch.py is not imported on the way, so an instruction may have come, gone or changed its name.
generate: .venv/.test
	PYTHONPATH=. $(BIN)/python -P accuracy/dispatch_source.py
	$(BIN)/python -m npu.isa.manual
	$(BIN)/python -m npu.isa.presets
	PYTHONPATH=. $(BIN)/python -P rtl/package.py
	$(BIN)/python -m tripath.command.manual

synth: .venv/.run
	@$(BIN)/python -m rtl.synthesis

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, make PYTHON=..."; exit 1; }
	@echo "setting up .venv"
	@$(PYTHON) -m venv .venv || { echo "error: python3 -m venv does not work here; on Debian and Ubuntu: apt-get install python3-venv"; rm -rf .venv; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.run: pyproject.toml uv.lock | $(BIN)/uv
	@echo "installing locked dependencies"
	@$(SYNC)
	@$(BIN)/python -m compileall -q $(PACKAGES)
	@touch $@

.venv/.test: pyproject.toml uv.lock | $(BIN)/uv
	@echo "installing locked test dependencies"
	@$(SYNC) --group test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

.venv/.check: pyproject.toml uv.lock | $(BIN)/uv
	@$(SYNC) --group check --group test
	@touch $@

.venv/.docs: pyproject.toml uv.lock | $(BIN)/uv
	@$(SYNC) --group docs
	@touch $@

clean:
	rm -rf .venv site runs/2* mlruns .pytest_cache .ruff_cache
