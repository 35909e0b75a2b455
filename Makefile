# `make demo` and `make test` build .venv once and work in it.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.PHONY: demo photographs test ablations fault-injection fuzzing clean

demo: $(VENV)/ready
	dvc repro
	@cat metrics/results.txt

# a folder of your own, as presets/idd.yaml has one: make photographs DATA=/path/to/it CLASSES=road,car
photographs: $(VENV)/ready
	@test -n "$(DATA)" -a -n "$(CLASSES)" || { echo "say where and what: make photographs DATA=/path/to/it CLASSES=road,car"; exit 1; }
	pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e ".[photographs]"
	cp presets/idd.yaml params.yaml
	dvc exp run -S "dataset.root=$(DATA)" -S 'dataset.classes=[$(CLASSES)]' -S dataset.palette=null -S dataset.subset=null
	@dvc metrics show
	@echo "Open metrics/report.html in a browser."

test: $(VENV)/ready
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# ROWS and SEEDS choose: make ablations ROWS="fine scribble" SEEDS="0 1"
ablations: $(VENV)/ready
	python -m benchmarks.ablations $(if $(ROWS),--rows $(ROWS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS))

# every fault at every place, an hour of one core and more; CASES draws so many of them: make fault-injection CASES=1000
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
