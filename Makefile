# Lifelora: `make demo`, `make test`, `make train`. A second run reuses what is there.
PYTHON ?= python3.11
TORCH ?=# more arguments of pip for torch, e.g. TORCH="--index-url URL" of CPU builds
CONFIG ?= jobs/configs/ml-100k.yaml
BIN := .venv/bin
RUN := $(BIN)/python -m
# On all cores (pip would take one) and not what few runs import: that is compiled when it is.
COMPILE := $(RUN) compileall -qq -j 0 -x '/(tests|pip|moto|cfnlint)/|/transformers/models/' .venv/lib || true
PIP := $(RUN) pip install --disable-pip-version-check --no-compile

INSTALLED := .venv/.installed
TESTED := .venv/.installed-dev
QUALITY := $(RUN) benchmarks.quality --plan benchmarks/quality
NO_DATA := echo "left out, docs/evaluation.md says where it comes from:"
AIRFLOW := cache/airflow/.installed
PEERS := cache/peers/fuxictr/.installed cache/peers/rectools/.installed
FETCHED := cache/ml-100k/ml-100k.inter cache/models/smollm2-135m-instruct/config.json

export RAY_USAGE_STATS_ENABLED ?= 0
export TOKENIZERS_PARALLELISM ?= false
export PYTHONDONTWRITEBYTECODE :=# else every process compiles anew what COMPILE left out

.PHONY: demo test test-serving test-ray test-rest check-airflow train results results-quick nights serve install fetch lint docs constraints clean
.DELETE_ON_ERROR:

demo: $(INSTALLED) $(FETCHED)           ## a small run, recommendations over HTTP, a night, and again
	$(RUN) jobs.demo

test: $(TESTED)                         ## everything that .ci/run runs
	$(MAKE) --no-print-directory --jobs=3 --output-sync=line \
	  test-serving test-ray lint test-rest check-airflow

test-serving: $(TESTED) $(FETCHED)      # these two wait often: the others run meanwhile
	$(RUN) pytest tests/serving -m ray --durations=15

test-ray: $(TESTED) $(FETCHED)
	$(RUN) pytest --ignore=tests/serving -m ray --durations=15

test-rest: $(TESTED) $(FETCHED)
	$(RUN) pytest -m "not ray"

check-airflow: $(AIRFLOW)               ## Airflow, in an environment of its own, runs the DAG
	cache/airflow/bin/python tests/schedules/check_airflow.py

train: $(INSTALLED) $(FETCHED)          ## all of MovieLens-100K, or CONFIG=...
	$(RUN) jobs.train_reclora --config $(CONFIG)

results: $(INSTALLED) $(FETCHED) $(PEERS)   ## docs/results.md: hours; stopped, it goes on where it was
	$(QUALITY)/ml-100k.yaml
	if test -e cache/ml-1m.zip; then $(QUALITY)/ml-1m.yaml; else $(NO_DATA) ml-1m.zip; fi
	if test -e cache/online-retail.zip; then $(QUALITY)/online-retail.yaml; \
	  else $(NO_DATA) online-retail.zip; fi
	$(RUN) benchmarks.quality.page

results-quick: $(INSTALLED) $(FETCHED)  ## a short form of the results, printed
	$(QUALITY)/quick.yaml --out runs/quality/quick/results
	$(RUN) benchmarks.quality.page --quick runs/quality/quick/results

nights: $(INSTALLED) $(FETCHED)         ## MovieLens-100K: a first release, then five nights; 20 minutes
	$(RUN) benchmarks.nights --plan benchmarks/nights/short.yaml

serve: $(INSTALLED) $(FETCHED)          ## the live release on http://127.0.0.1:8000
	$(BIN)/serve run serve_configs/local.yaml

install: $(INSTALLED)

fetch: $(FETCHED)

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)                      ## docs/config.md from the settings' descriptions
	$(RUN) jobs.write_config_docs

cache/peers/%/.installed: benchmarks/peers/%.txt    # for `make results`
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25"
	$(@D)/bin/python -m pip install --disable-pip-version-check $(TORCH) --requirement $<
	touch $@

$(AIRFLOW): tests/schedules/airflow.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --requirement $<
	touch $@

constraints: $(TESTED)               ## pin the versions that are installed now
	{ sed -n '/^#/p' constraints.txt; $(RUN) pip freeze --all --exclude pip --exclude lifelora \
	  | sed -n 's/^\([A-Za-z0-9._-]*==[^+]*\).*/\1/p' | LC_ALL=C sort -f; } > constraints.new
	mv constraints.new constraints.txt

clean:                                  ## keeps cache/, runs/ and state/
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing to .venv: some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --quiet "pip>=25"                # Python 3.11's own takes twice as long
	$(PIP) --constraint constraints.txt $(TORCH) torch
	$(PIP) --constraint constraints.txt --editable .
	$(COMPILE)
	touch $@

$(TESTED): $(INSTALLED)
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	$(COMPILE)
	touch $@

$(FETCHED) &: jobs/fetch_inputs.py | $(INSTALLED)
	$(RUN) jobs.fetch_inputs
	touch $(FETCHED)
