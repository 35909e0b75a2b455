# `make demo` and `make test` build .venv once and work in it.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

TRAININGS := train_baseline train_student@r1

.PHONY: demo $(TRAININGS) test long-tests reference networks ablations fault-injection fuzzing clean

# two trainings side by side take two thirds of the time of one after the other with all cores
demo: $(VENV)/ready
	dvc repro merge_labels@r1
	$(MAKE) -j 2 $(TRAININGS)
	dvc repro
	@cat metrics/results.txt

$(TRAININGS):
	OMP_NUM_THREADS=$$((($$(nproc) + 1) / 2)) dvc --wait-for-lock repro --single-item $@

test: $(VENV)/ready
	ruff check .
	ruff format --check .
	mypy --num-workers 2
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# Ray's workers, trainings in several processes, and runs that are killed again and again
long-tests: $(VENV)/ready
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m long

# docs/reference/params.md and cli.md, after a change of the schema or the parser
reference: $(VENV)/ready
	python -m tools.reference

# docs/reference/networks.md, by training a network of every family of mmsegmentation, in five minutes of one core
networks: $(VENV)/ready
	python -m tools.networks

# ROWS and SEEDS choose: make ablations ROWS="fine scribble" SEEDS="0 1"
ablations: $(VENV)/ready
	python -m benchmarks.ablations $(if $(ROWS),--rows $(ROWS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS))

# every fault at every place, an hour of one core and more; CASES samples them: make fault-injection CASES=1000
fault-injection: $(VENV)/ready
	python -m tests.robustness.fault_injection $(if $(CASES),--cases $(CASES))

fuzzing: $(VENV)/ready
	python -m tests.robustness.fuzzing $(if $(CASES),--cases $(CASES))

clean:
	rm -rf $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e ".[test]"
	touch $@
