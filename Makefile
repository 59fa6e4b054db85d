# Two commands do all set-up: `make demo` and `make test`. They need Python 3.11 or newer and a package index.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# the first of these that runs and is new enough; PYTHON=/path/to/python chooses another
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)

.PHONY: demo test check docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.core
	@mkdir -p demo
	@$(BIN)/python -c "import pathlib, shutil, skimage; [shutil.copy(pathlib.Path(skimage.__file__).parent / 'data' / f, 'demo') for f in ('chelsea.png', 'coffee.png')]"
	$(BIN)/heatproof explain demo/chelsea.png demo/coffee.png --classes 5 -o demo \
		--method gradcam,gradcam++,layercam,integrated-gradients --option steps=32
	@echo "The pictures are in demo/; begin with demo/chelsea.panel.png."

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) demo dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The stamps keep a second run from installing again.
$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -c constraints.txt -e '.[dev,zoo,bench]'
	@touch $@

$(VENV):
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "making $(VENV) with $$("$$python" --version), installing takes a minute or two"; \
			"$$python" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "$$python cannot make a virtual environment; install its venv package (Debian, Ubuntu: python3-venv)." >&2; \
			exit 1; \
		fi; \
	done; \
	echo "heatproof needs Python 3.11 or newer and none of $(PYTHONS) is; install one, or say make PYTHON=/path/to/python." >&2; \
	exit 1
