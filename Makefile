# One vocabulary for people and CI. Needs make, Python 3.11 or newer and a package index; makes the rest itself.
#
#   make setup   the environment for all of this, in .venv (again only when pyproject.toml changes)
#   make check   lint, format, types
#   make test    the test suite          make slow   the tests that take longer
#   make browser reports in a headless Chromium, which must be installed
#   make faults  every system call fails once: half an hour; root and strace
#   make power   20 power cuts; make freeze: a machine short of memory; root and User-Mode Linux
#   make unicode the tables of characters that engine and reference treat otherwise; half an hour, after either changed
#   make fuzz    mutated files and options for FUZZ_S seconds: none may surprise
#   make ray     clusters of Ray on this machine, whose nodes are killed; some minutes, in an environment of its own
#   make interop every format read by its trainer's own package; gigabytes of them
#   make package wheel and sdist, each installed into an environment of its own and tried; two minutes
#   make docs    the site, in build/docs: broken links are errors
#   make demo    the Python library's sources as token files, in ./demo
#   make bench   a corpus of 0.3 GB, how fast it goes, how near to the floor, and whether it became slower
#   make peers   the same corpus by every peer that installs
#   make clean   remove all of that

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := $(VENV)/bin
USABLE := $(VENV)/.usable
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=

DEMO_TEXT := build/python-library
BENCH := benchmarks/data
BENCH_GB ?= 0.3

.DEFAULT_GOAL := help
.PHONY: help docs setup check test slow browser unicode faults fuzz power freeze ray interop package bench peers demo clean

help:
	@sed -n '3,18s/^# *//p' Makefile

setup: $(STAMP)

# What tokmill itself needs, for `make demo`.
$(USABLE): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "no Python 3.11 or newer was found; name one: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@rm -f $@
	@echo "setting up $(VENV): tokmill and its packages, about a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(STAMP): $(USABLE)
	@rm -f $@
	@echo "setting up $(VENV): the packages of the tests, two minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

check: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin src
	@$(BIN)/lint-imports --no-cache --no-logo

# A process a core; the tests of a file stay together, because they share what was made for them.
test: $(STAMP)
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow --ignore tests/faults $(PYTEST_ARGS)

browser: $(STAMP)
	@$(BIN)/python -m pytest -m browser tests/reports/test_report_browser.py $(PYTEST_ARGS)

unicode: $(STAMP)
	@cd tests && ../$(BIN)/python -m support.unicode_tables

faults: $(STAMP)
	@$(BIN)/python -m pytest -o faulthandler_timeout=0 -m 'slow or root' tests/faults $(PYTEST_ARGS)

FUZZ_S ?= 600
FUZZ_SEED ?= 0
fuzz: $(STAMP)
	@FUZZ_S=$(FUZZ_S) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -o faulthandler_timeout=0 -m fuzz tests/faults/test_fuzz.py $(PYTEST_ARGS)

power freeze: $(STAMP)
	@$(BIN)/python -m pytest -o faulthandler_timeout=0 -m $@ tests/faults $(PYTEST_ARGS)

RAY := .venv-ray
$(RAY)/.installed: pyproject.toml
	@rm -f $@
	@echo "setting up $(RAY)"
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,ray]'
	@touch $@

ray: $(RAY)/.installed
	@$(RAY)/bin/python -m pytest -o faulthandler_timeout=0 -m ray tests/system $(PYTEST_ARGS)

# The trainers' packages contradict one another in their requirements of numpy and others: most come without theirs.
INTEROP := .venv-interop
$(INTEROP)/.installed: Makefile pyproject.toml
	@rm -f $@
	@echo "setting up $(INTEROP)"
	@$(PYTHON) -m venv $(INTEROP)
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 litdata==0.2.76 transformers
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		megatron-core==0.16.1 datatrove==0.10.1 mosaicml-streaming==0.13.0 ai2-olmo-core==3.0.0 cached-path==1.8.10
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --editable . pytest hypothesis \
		bettermap dataclass-extensions humanize importlib_resources loguru multiprocess safetensors brotli python-snappy zstd catalogue \
		google-cloud-storage boto3
	@touch $@

interop: $(INTEROP)/.installed
	@$(INTEROP)/bin/python -m pytest -s -m torch tests/formats/test_interop.py $(PYTEST_ARGS)

# What a person gets who installs tokmill: built from a copy of what is distributed, used outside of the checkout.
PACKAGE := build/package
package: $(USABLE)
	@rm -rf $(PACKAGE) && mkdir -p $(PACKAGE)
	@$(PYTHON) -m venv $(PACKAGE)/tools
	@$(PACKAGE)/tools/bin/python -m pip install --quiet --disable-pip-version-check build pipx
	@$(PACKAGE)/tools/bin/python -m build --outdir $(PACKAGE)/dist . > $(PACKAGE)/build.log 2>&1 || { cat $(PACKAGE)/build.log; exit 1; }
	@for made in $(PACKAGE)/dist/*; do \
		echo "$$made" && $(PYTHON) tests/support/installed.py "$$made" || exit 1; \
	done
	@PIPX_HOME=$(PACKAGE)/pipx $(PACKAGE)/tools/bin/pipx run --spec $(PACKAGE)/dist/*.whl tokmill --version

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

# Links to the library's modules and packages, without what was installed beside them.
$(DEMO_TEXT): | $(USABLE)
	@rm -rf $@ && mkdir -p $@
	@library=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))'); \
	for path in "$$library"/*; do \
		case $$path in */site-packages|*/dist-packages|*/__pycache__) continue;; esac; \
		if [ -d "$$path" ] || [ -f "$$path" ]; then ln -s "$$path" $@/; fi; \
	done

# A few of the library's own tests are deliberately not UTF-8, hence --encoding-errors.
demo: $(DEMO_TEXT) $(USABLE)
	$(BIN)/tokmill tokenize $(DEMO_TEXT) --glob '*.py' --separator none --encoding-errors replace \
		--val-fraction 0.01 --out demo --fresh
	$(BIN)/tokmill verify demo
	$(BIN)/tokmill inspect demo
	@echo
	@ls -l demo
	@echo
	@echo "Those are $(CURDIR)/demo. For a corpus of your own:"
	@echo "    $(BIN)/tokmill tokenize corpus.txt --out data"

$(BENCH)/corpus.txt: $(STAMP) $(DEMO_TEXT)
	@mkdir -p $(BENCH)
	@find -L $(DEMO_TEXT) -name '*.py' -size -400k -exec cat {} + | iconv -c -f utf-8 -t utf-8 > $(BENCH)/seed.txt
	@$(BIN)/python benchmarks/make_corpus.py $@ --gb $(BENCH_GB) --seed-text $(BENCH)/seed.txt --no-curve

bench: $(BENCH)/corpus.txt
	@$(BIN)/python benchmarks/speed.py $< --rounds 3
	@$(BIN)/python benchmarks/floor.py $<
	@$(BIN)/python benchmarks/gate.py $<

peers: $(BENCH)/corpus.txt
	@$(BIN)/python benchmarks/against_peers.py $< --svg $(BENCH)/peers.svg
	@$(BIN)/python benchmarks/shuffle_peers.py $<
	@echo "a chart: $(BENCH)/peers.svg"
	@$(BIN)/python benchmarks/near_peers.py $<

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo $(BENCH)
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
