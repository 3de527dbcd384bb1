# moonlake: `make demo` and `make test` are all you need; both set everything up first.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick test-long check format docs lock archive clean

BIN := .venv/bin
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest
# A worker takes a core and, with a Spark session and a model loaded, 6 GB of memory.
TIERS := -n 2 --durations=25
CODE := $(wildcard benchmarks cli dags feature_repo models moonlake serving sources spark_jobs studies tests tools workflows)

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  make \1\t\2/p' Makefile | expand -t 18

setup:  ## Python packages, moonlake, Delta's jars (Python 3.11 and Java 17 must be there)
	@./setup.sh

demo: setup  ## the whole product on simulated shops: lake, encoder, features, CTR, report
	@$(BIN)/moonlake demo

test: setup  ## every test but those that need a GPU
	@$(PYTEST) $(TIERS) -m "not gpu"

test-quick: setup  ## the tests that need no JVM, no Airflow and no Redis, and are not slow
	@$(PYTEST) $(TIERS) -m "not (spark or airflow or redis or slow or gpu)"

test-long: setup  ## the oracle tests of point-in-time joins, on 50,000 random cases an engine
	@ORACLE_CASES=50000 $(PYTEST) --hypothesis-profile=long \
		tests/moonlake/test_point_in_time.py tests/moonlake/feast_delta/joins/test_oracle_cases.py

check: setup  ## ruff, mypy strict, import layers: the pre-commit check
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/pytest -q tests/test_layers.py tests/test_docs.py

format: setup  ## let ruff put the code in order
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: setup  ## the docs site, into build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lock: setup  ## requirements.lock anew from pyproject.toml; what is locked stays unless a bound moved
	@$(BIN)/python -m uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-emit-index-url \
		--custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

archive: setup  ## library and application as one zip, for `spark-submit --py-files`
	@$(BIN)/python tools/archive.py

clean:  ## remove the environment and the caches; .moonlake, your lake, stays
	rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
