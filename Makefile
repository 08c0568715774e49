# Every target makes what it needs: a fresh clone, `make` and a Python >= 3.12 are enough. `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

# Set these on the command line: make test PYTEST_ARGS='-k attention'.
CONFIG := tiles.py
SWEEP_ARGS :=
WORKERS := 2
PYTEST_ARGS :=
SOAK_ARGS :=
SERVER_SOAK_ARGS :=
FUZZ_ARGS :=
SERVE_ARGS :=

VENV := .venv
NEWEST := .venv-newest-jax
# What constraints.txt pins and this environment takes as new as pyproject.toml allows: names, with | between them.
UNPINNED :=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
MADE := $(VENV)/.made-for

# An environment is kept only if its interpreter runs, it was made for this directory (an editable install holds
# absolute paths), and no installation was cut short in it. Otherwise it is made afresh.
VENV_OK := $(shell test "`cat $(MADE) 2>/dev/null`" = "$(CURDIR)" && test ! -e $(VENV)/.installing \
	&& $(PY) -I -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo yes)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: CONFIG=$(CONFIG) SWEEP_ARGS= WORKERS=$(WORKERS) PYTEST_ARGS= PYTHON="

.PHONY: sweep
sweep: $(VENV)/.installed-plot ## run the tile sweep (CONFIG=, SWEEP_ARGS=)
	$(PY) -m experiments.sweep --config=$(CONFIG) $(SWEEP_ARGS)

.PHONY: test
test: $(VENV)/.installed-test ## run the tests (WORKERS=, PYTEST_ARGS=)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

.PHONY: quick
quick: $(VENV)/.installed-test ## run the tests of a minute, while you work
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not aot" -q $(PYTEST_ARGS)

.PHONY: serve
serve: $(VENV)/.installed-serve ## serve the small model that ships, OpenAI's API at port 8000 (SERVE_ARGS=)
	$(PY) -m tokenspeed serve $(SERVE_ARGS)

.PHONY: soak
soak: $(VENV)/.installed-test ## requests against themselves alone: the engine (SOAK_ARGS=), a server (SERVER_SOAK_ARGS=)
	$(PY) -m experiments.soak --batch_invariant $(SOAK_ARGS)
	$(PY) -m experiments.soak $(SOAK_ARGS)
	$(PY) -m experiments.server_soak $(SERVER_SOAK_ARGS)

.PHONY: test-server-load
test-server-load: $(VENV)/.installed-test ## a server under 200 clients, some minutes of the soak (SERVER_SOAK_ARGS=)
	$(PY) -m experiments.server_soak --clients=200 --seconds=15 --one_token=1000 --half_open=200 $(SERVER_SOAK_ARGS)

.PHONY: test-browser
test-browser: $(VENV)/.installed-test,browser ## the server's page in Chromium, which Debian's root gets installed (CHROMIUM=)
	@CHROMIUM=`CHROMIUM='$(CHROMIUM)' sh .ci/find-chromium` && export CHROMIUM && $(PY) -m pytest tests/browser $(PYTEST_ARGS)

.PHONY: test-fuzz
test-fuzz: $(VENV)/.installed-test,fuzz ## 5000 bodies that nobody thought of (FUZZ_ARGS='--bodies=20000 --fuzz-seed=1')
	$(PY) -m pytest tests/fuzz $(FUZZ_ARGS) $(PYTEST_ARGS)

JAX_TESTS := tests/pallas_kernels/common/test_hooks.py tests/pallas_kernels/common/test_without_hooks.py \
	tests/pallas_kernels/test_lowering.py tests/pallas_kernels/test_aot.py

.PHONY: test-newest-jax
test-newest-jax: ## run the hook, lowering and ahead-of-time tests with the newest jax allowed, in an environment of its own
	@$(MAKE) --no-print-directory VENV=$(NEWEST) UNPINNED='jax|jaxlib' $(NEWEST)/.cuda-plugin
	TOKENSPEED_CUDA_PLUGIN=$(NEWEST)/.cuda-plugin $(NEWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal \
		-k "not a100 and not b200" $(PYTEST_ARGS) $(JAX_TESTS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff check, ruff format --check, pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright

.PHONY: format
format: $(VENV)/.installed-dev ## let ruff fix and format the sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: venv
venv: $(VENV)/.installed-test,dev,plot ## only make .venv, with what all targets but test-browser and test-fuzz need

.PHONY: clean
clean: ## remove the environments, caches and build outputs
	rm -rf $(VENV) $(NEWEST) build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .installed-EXTRA: the package, editable, with that extra, at the versions of constraints.txt but for UNPINNED.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(MADE)
	@echo "Installing .[$*] into $(VENV) (a few minutes the first time)"
	@touch $(VENV)/.installing
	@grep -vE '^($(UNPINNED))==' constraints.txt > $(VENV)/constraints.txt
	@$(PIP) install -qq --constraint $(VENV)/constraints.txt --editable '.[$*]'
	@rm $(VENV)/.installing
	@touch $@

# XLA's CUDA compiler for the jax of the environment, beside it: an installed one is tried at every start of jax.
$(VENV)/.cuda-plugin: $(VENV)/.installed-test
	@version=`$(PY) -c 'import jax; print(jax.__version__)'` && echo "The CUDA plugin of jax $$version" && rm -rf $@ $@.part \
	&& $(PIP) install -qq --no-deps --target $@.part "jax-cuda13-plugin==$$version" "jax-cuda13-pjrt==$$version" \
	&& mv $@.part $@ && touch $@

$(MADE): $(if $(VENV_OK),,FORCE)
	@python=`sh .ci/find-python` || exit 1; \
	echo "Making $(VENV) with $$python"; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV) || { echo "error: $$python -m venv failed (see above)" >&2; exit 1; }
	@printf '%s\n' "$(CURDIR)" > $@

.PHONY: FORCE
FORCE:
