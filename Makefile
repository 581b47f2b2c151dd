# Two commands do everything on a machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
# cpu, auto (the build for the GPU that is there) or cu128 and the like; e.g. make demo TORCH=cpu
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo auto || echo cpu)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test lint environment benchmarks clean

demo: $(DEMO)/data
	$(BIN)/bids_dmrigen $(DEMO)/data $(DEMO)/out participant --methods difusion --work-dir $(DEMO)/work
	$(BIN)/bids_dmrigen $(DEMO)/data $(DEMO)/out group
	@echo "$(abspath $(DEMO))/out/sub-01.html"

test: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(DEMO)/data: | environment
	rm -rf $(DEMO)/unfinished
	$(BIN)/dmrigen demo $(DEMO)/unfinished
	mv $(DEMO)/unfinished $@

environment: $(VENV)/.ready

# torch comes first and apart: pip alone would take the CUDA build, gigabytes of it, also where there is no GPU.
# A CPU build that pip can see is used; otherwise uv picks the right build by name.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	if [ "$(TORCH)" != cpu ] || ! $(BIN)/python -m pip install --quiet "torch==$(TORCH_VERSION)+cpu"; then \
	  $(BIN)/python -m pip install --quiet uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH) "torch==$(TORCH_VERSION)"; \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

benchmarks: environment
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(DEMO)
