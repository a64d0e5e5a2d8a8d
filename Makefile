# The two commands a newcomer needs: `make demo` and `make test`. Both make a virtual environment and install into it first.
# TORCH chooses the torch that is installed and built against: make demo TORCH=torch
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py build_backend.py $(shell find csrc -type f)

.PHONY: demo test test-cpp test-cuda-compile bench clean

demo: $(VENV)/.installed
	$(BIN)/python -m cos_ext demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# An editable install, so that the tests and the command line run the sources of this folder.
$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# The core and the CPU kernels without Python, under the address and undefined-behaviour sanitizers.
test-cpp:
	cmake -S . -B build/cpp -DCMAKE_BUILD_TYPE=Debug -DCOS_EXT_SANITIZE=ON
	cmake --build build/cpp --parallel 2
	cd build/cpp && ctest --output-on-failure

# Compiles and links the CUDA operators for sm_80, sm_90 and PTX, and looks at the registers, spills and transactions of
# every kernel; needs nvcc, no GPU and no CUDA build of torch.
test-cuda-compile: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet setuptools ninja pybind11
	FORCE_CUDA=1 $(BIN)/python setup.py build_ext --build-lib build/cuda --build-temp build/cuda-temp
	test -f build/cuda/cos_ext/_C_cuda.abi3.so
	-$(BIN)/python -m pip install --quiet nvidia-cuda-nvdisasm
	$(BIN)/python tests/kernels/cuda_kernels.py

bench: $(VENV)/.installed
	$(BIN)/python -m cos_ext bench --compile

clean:
	rm -rf build dist *.egg-info cos_ext/*.so $(VENV)
