# `make help` lists what can be made. PYTHON chooses the interpreter: make run PYTHON=python3.12
# ARGS goes to the program: make run ARGS="--model-path longcat-weights --port 7861"
# Tests run in two processes, a file at a time in each: make test WORKERS= runs them one after the other.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
TOOLS  := .venv-tools
WORKERS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast lint lock bench quality clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP)  ## install what is missing and serve http://localhost:7860
	$(PY) app.py $(ARGS)

test: $(STAMP)  ## install what is missing and run every test that this machine can run
	$(PY) -m pytest $(WORKERS) $(ARGS)

test-fast: $(STAMP)  ## the same without browser, training, measurements and whole programs: minutes instead of half an hour
	$(PY) -m pytest $(WORKERS) -m "not browser and not slow" $(ARGS)

bench: $(STAMP)  ## measure the GPU: kernels, peers, whole forwards, memory (into outputs/bench); or the CPU's attention
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		PYTHON=$(PY) OUT=outputs/bench SECONDS_ALLOWED=3600 sh benchmarks/h200.sh check attention forward memory curve; \
		else $(PY) benchmarks/attention_cpu.py; fi

quality: $(STAMP)  ## compare sparse with dense videos on a few prompts (minutes; the whole study needs a GPU)
	$(PY) benchmarks/quality.py --reduced --output outputs/quality.json

lint: $(STAMP) $(TOOLS)/.installed  ## check the style with ruff and the types with mypy
	@find . -name '*.pyi' -not -path './.venv*' -delete  # stubs that Gradio writes; mypy would read them, stale or not
	$(TOOLS)/bin/ruff check .
	$(TOOLS)/bin/mypy --python-executable $(PY)

lock: $(TOOLS)/.installed  ## compile requirements.txt from requirements.in (pins that still fit stay)
	$(TOOLS)/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
		--no-emit-index-url --annotation-style line --custom-compile-command "make lock" \
		--output-file requirements.txt requirements.in

install: $(STAMP)  ## only install

clean:  ## remove the environments, the caches and the outputs
	rm -rf $(VENV) $(TOOLS) outputs .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than requirements.txt once the installation has succeeded, so a second `make run` starts at once.
$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 13) else \
		f"$(PYTHON) is Python {v[0]}.{v[1]}; the lock is for 3.11 and 3.12: try make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	@touch $@

$(TOOLS)/.installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8 ruff==0.17.5 mypy==2.4.1
	@touch $@
