# `make demo` and `make test` are all that a newcomer needs. Every target makes a virtual environment and installs into it
# what the target lacks. TORCH chooses the torch that is installed and built against: make demo TORCH=torch
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Processes that share the tests. Each needs about 1.5 GiB.
WORKERS ?= 2
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py build_backend.py $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
# A file's tests stay in one process, where they share what is built once; conftest.py orders the files.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-fast test-cpp test-cross test-cuda-compile lint docs bench clean
.DEFAULT_GOAL := help

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed  ## Convert the shipped network and print its accuracy at every time-step
	$(BIN)/python -m cos_ext demo

test: $(VENV)/.installed  ## All tests
	$(PYTEST)

test-fast: $(VENV)/.installed  ## Tests of every room, without those marked slow
	$(PYTEST) -m "not slow"

# The core and the CPU kernels without Python.
test-cpp:  ## The C++ tests under the address and undefined-behaviour sanitizers (needs cmake)
	cmake -S . -B build/cpp -DCMAKE_BUILD_TYPE=Debug -DCOS_EXT_SANITIZE=ON
	cmake --build build/cpp --parallel 2
	cd build/cpp && ctest --output-on-failure --parallel 2

# zig is a clang with the C++ libraries of other systems.
test-cross: $(VENV)/.installed  ## The core for aarch64, tested under qemu-user, and for macOS, compiled; skips what it has no tool for
	-$(BIN)/python -m pip install --quiet ziglang pybind11
	tests/cpp/cross.sh $(BIN)/python

# All kernels for sm_80 and sm_90: registers, spills, transactions and instructions of each; a few for every architecture of the default
# list. The operators are linked for one of them. Needs no CUDA build of torch.
test-cuda-compile: $(VENV)/.installed  ## Compile and link the CUDA operators (needs nvcc, no GPU)
	$(BIN)/python -m pip install --quiet setuptools ninja pybind11
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="9.0+PTX" $(BIN)/python setup.py build_ext --build-lib build/cuda --build-temp build/cuda-temp
	test -f build/cuda/cos_ext/_C_cuda.abi3.so
	-$(BIN)/python -m pip install --quiet nvidia-cuda-nvdisasm
	$(BIN)/python tests/kernels/cuda_kernels.py
	$(BIN)/python tests/kernels/cuda_archs.py

lint: $(VENV)/.extra-lint  ## Style and types: ruff, mypy, clang-format; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

docs: $(VENV)/.extra-docs  ## Build the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

bench: $(VENV)/.installed  ## Time the kernels on this machine
	$(BIN)/python -m cos_ext bench --compile

clean:  ## Remove what was built and the virtual environment
	rm -rf build dist *.egg-info cos_ext/*.so $(VENV)

# An editable install, so that the tests and the command line run the sources of this folder.
$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# cos_ext is installed, so that pip adds what an extra needs and builds nothing: `make demo` need not install these.
$(VENV)/.extra-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet 'cos_ext[$*]'
	touch $@
