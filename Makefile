# PYTHON=python3.12 chooses the interpreter. The environment is .venv in this folder, and nothing is installed elsewhere.
# On Linux, pip's torch comes with CUDA, which is large; a torch of the version in constraints.txt that is in .venv
# already is kept.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

.NOTPARALLEL:
.PHONY: help demo test bench lint venv clean

help:
	@echo "make demo   sample captioned pictures from the bundled model (DEMO_ARGS: further flags of scripts/txt2img.py)"
	@echo "make test   run the tests (TEST_ARGS: further arguments of pytest; -n 0: one after the other)"
	@echo "make bench  measure beside diffusers, hours on few cores (BENCH_ARGS: flags of scripts/benchmark.py)"
	@echo "make lint   check the code with ruff"
	@echo "make venv   only make the environment, $(VENV)"
	@echo "make clean  remove the environment"

demo: $(VENV)/.scripts
	@$(BIN)/python scripts/txt2img.py --from-file configs/demo_prompts.txt --n_samples 20 --n_iter 1 --n_rows 5 \
		--outdir outputs/demo $(DEMO_ARGS)

# Some processes (2 GB each at most) with a thread each: on tiny tensors, more threads only wait for each other.
test: $(VENV)/.test
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest \
		-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

bench: $(VENV)/.bench
	@$(BIN)/python scripts/benchmark.py $(BENCH_ARGS)

lint: $(VENV)/.test
	$(BIN)/python -m ruff check .

venv: $(VENV)/.scripts

clean:
	rm -rf $(VENV)

# A stamp is renewed when what to install has changed. `pip --version` fails where making .venv was interrupted.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo "make: '$(PYTHON)' is not Python 3.10 or newer; name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	echo "make: '$(PYTHON)' cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
$(BIN)/python -m pip install -c constraints.txt -e '.[$(1)]'
@touch $@
endef
comma := ,

$(VENV)/.scripts: setup.py constraints.txt
	$(call install,scripts)

$(VENV)/.test: setup.py constraints.txt
	$(call install,scripts$(comma)test$(comma)lint)
	@touch $(VENV)/.scripts

$(VENV)/.bench: setup.py constraints.txt
	$(call install,scripts$(comma)bench)
	@touch $(VENV)/.scripts
