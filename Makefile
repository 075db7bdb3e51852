# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check results-check clean

demo: $(VENV)/installed-demo
	$(BIN)/waterfill demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

check: $(VENV)/installed-dev
	scripts/check

results-check: $(VENV)/installed-dev
	$(BIN)/python benchmarks/results_check.py

READER := setup.py src/waterfill/codec/_native.c $(wildcard decoders/c/*.[ch])

$(VENV)/installed: pyproject.toml constraints.txt $(READER)
	@echo "Installing waterfill into $(VENV) (once; PyTorch is large) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --editable '.[compress]'
	@touch $@

$(VENV)/installed-demo: $(VENV)/installed
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable '.[demo,images,transformers,dev]'
	@$(PIP) --no-deps backpack-for-pytorch einops unfoldNd || echo "Without BackPACK; the tests against it are skipped."
	@touch $@

clean:
	rm -rf $(VENV) demo-output build
