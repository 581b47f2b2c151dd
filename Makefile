# Two commands do everything on a machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
# cpu, auto (the build for the GPU that is there) or cu128 and the like; e.g. make demo TORCH=cpu
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo auto || echo cpu)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

# The container: what builds and runs it (docker, podman), its name, the build of torch in it (cpu, cuda, cu126 and the like)
ENGINE ?= docker
IMAGE ?= bids_dmrigen:cpu
TORCH_BACKEND ?= cpu
# A version as PEP 440 has it: the tag of a release, else the commit.
VERSION ?= $(shell git describe --tags --exact-match 2>/dev/null || echo "0.1.0.dev0+g$$(git rev-parse --short HEAD)")

# Which lines the tests reach is measured from Python 3.12 on, where the interpreter itself counts them: next to no time.
COUNTS := $(shell $(PYTHON) -c 'import sys; print(int(sys.version_info >= (3, 12)))')
COVERED := $(if $(filter 1,$(COUNTS)),COVERAGE_CORE=sysmon)
COVERAGE := $(if $(filter 1,$(COUNTS)),--cov)

.PHONY: demo test lint environment benchmarks mutations image test-image sbom clean

demo: $(DEMO)/data
	$(BIN)/bids_dmrigen $(DEMO)/data $(DEMO)/out participant --methods difusion --work-dir $(DEMO)/work
	$(BIN)/bids_dmrigen $(DEMO)/data $(DEMO)/out group
	@echo "$(abspath $(DEMO))/out/sub-01.html"

test: lint
	$(COVERED) $(BIN)/python -m pytest $(COVERAGE)

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH) "torch==$(TORCH_VERSION)"; \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# PIP_FIND_LINKS, where it is set: a folder or page that has builds of torch beside those of the package index.
image:
	$(ENGINE) build --build-arg TORCH_BACKEND=$(TORCH_BACKEND) --build-arg PIP_FIND_LINKS --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$$(git rev-parse HEAD) --tag $(IMAGE) .

# RUN_OPTIONS: more options of the engine's run.
test-image: environment
	TEST_IMAGE=$(IMAGE) TEST_IMAGE_RUN="$(ENGINE) run $(RUN_OPTIONS)" $(BIN)/python -m pytest tests/test_image.py

# The software bill of materials of what lies in the image, made inside it; nothing of that stays.
sbom:
	$(ENGINE) run --rm --user 0 $(RUN_OPTIONS) --volume $(CURDIR)/constraints.txt:/constraints.txt:ro --entrypoint sh $(IMAGE) -c \
	  'python3 -m venv /tmp/bom && /tmp/bom/bin/pip install --quiet --constraint /constraints.txt cyclonedx-bom >&2 && \
	   /tmp/bom/bin/cyclonedx-py environment --output-reproducible /opt/venv/bin/python' > sbom.json

benchmarks: environment
	for script in $(filter-out benchmarks/mutations.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# Make mistakes in the code, one at a time, and see whether the tests notice: an hour or more.
mutations: environment
	$(BIN)/python benchmarks/mutations.py

clean:
	rm -rf $(VENV) $(DEMO)
