# Two commands do all the set-up on a fresh Debian machine: make demo, make test.
# The newest of Python 3.11, 3.12 and 3.10 that runs is used; PYTHON=... chooses another.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What the engines for NVIDIA GPUs are held against: TensorRT's bindings of three versions, the builder of TensorRT for RTX (146 MB), and the
# compiler of CUDA kernels (58 MB). Where
# they cannot be had (no Linux on x86-64, no network), their tests skip.
TENSORRT := 10.13=tensorrt_cu12_bindings==10.13.3.9 10.16=tensorrt_cu13_bindings==10.16.1.11 11.4=tensorrt_cu13_bindings==11.4.0.106 rtx=onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 nvrtc=nvidia-cuda-nvrtc==13.5.37
DEMO := openvino,onnxruntime,quantize,slicer

SECONDS ?= 1800

# Processes that run tests, each with one thread for its arithmetic; and environments that are made at once.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-fast test-all lint docs roads newest fuzz bench results clean

demo: $(VENV)/.demo
	$(BIN)/medquant demo --output demo-output

# What a push has to pass: all but what takes minutes.
test: $(VENV)/.test lint
	$(PYTEST) --durations=25

# While working: without what takes over five seconds.
test-fast: $(VENV)/.test
	$(PYTEST) -m "not slow"

# Before a release: also what takes minutes, such as every CUDA kernel for every generation of GPUs.
test-all: $(VENV)/.test lint
	$(PYTEST) --durations=25 --long

lint: $(VENV)/.test
	$(BIN)/ruff check MedQuantINT8 Testing tools benchmarks experiments examples
	$(BIN)/ruff format --check -q MedQuantINT8 Testing tools benchmarks experiments examples
	$(BIN)/mypy
	$(BIN)/codespell $$(git ls-files '*.py' '*.md' '*.toml' '*.yml' '*.txt' '*.ui' '*.ipynb' '*.cff' '*.cu' '*.cuh' '*.html' Makefile)

# The pages of docs/, into build/docs; a dead link is an error.
docs: $(VENV)/.test
	$(BIN)/mkdocs build -q

# Every way to install, each in an environment of its own, and the job that it is for.
roads: | $(BIN)/python
	$(BIN)/python Testing/Installs/roads.py --together $(JOBS)

# The same with the newest of everything that pyproject.toml allows, as a user gets it a year from now.
newest: | $(BIN)/python
	$(BIN)/python Testing/Installs/roads.py --newest --together $(JOBS)

# Damaged and hostile files before every reader: first seeded, then guided by coverage. The tests do a minute of the first.
fuzz: $(VENV)/.test
	$(PIP) install -q atheris
	$(BIN)/python Testing/Fuzzing/fuzz.py --seed $$(date +%s) --seconds $(SECONDS)
	for reader in model.json zip onnx nifti nrrd mha bundle nnunet data-set; do $(BIN)/python Testing/Fuzzing/fuzz.py $$reader --guided --seconds $$(( $(SECONDS) / 9 )) || exit 1; done

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run_all.py

results: $(VENV)/.test
	$(BIN)/python benchmarks/real_networks.py

# Debian's python3 has no ensurepip until python3-venv is installed; its pip can fill a bare environment.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "MedQuantINT8 needs Python 3.10, 3.11 or 3.12; none was found." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }

# torch first and by its exact version: on machines without a GPU it may come from a CPU build that lies at hand.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e '.[$(DEMO)]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e '.[$(DEMO),import,test]'
	-for p in $(TENSORRT); do test -d $(VENV)/tensorrt/$${p%%=*} || $(PIP) install -q --no-deps --target $(VENV)/tensorrt/$${p%%=*} $${p#*=}; done
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo-output build .pytest_cache .mypy_cache .ruff_cache
