# One word each. `make` alone lists them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A test waits for its server nearly half of the time.
WORKERS := $(shell echo $$(( $$(nproc) * 3 )))
SERVICES := postgresql cron systemd pgbouncer radosgw ceph-mon ceph-osd ceph-mgr age zstd docker.io docker-compose busybox-static \
	prometheus prometheus-node-exporter prometheus-pushgateway prometheus-alertmanager chromium chromium-driver \
	zsh fish mandoc man-db mmdebstrap

PEERS := zstd restic borgbackup borgmatic pgbackrest barman

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types fmt pages docs bench bench-quick build image up down acceptance soak services peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "opsctl needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) \
		|| { echo "Python's venv module is incomplete here. On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,serve,docs,dev]'
	@touch $@

demo: setup ## back up, damage, restore and undo on a PostgreSQL of its own
	@$(BIN)/opsctl demo

test: setup ## the whole test suite, on real servers; no root, no apt needed
	$(BIN)/python -m pytest -n $(WORKERS)

lint: setup types ## style, spelling, layers, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell opsctl tests docs README.md CHANGELOG.md CONTRIBUTING.md

types: setup ## mypy, strict
	$(BIN)/mypy

fmt: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

pages: setup ## write the generated pages anew
	$(BIN)/python docs/generate.py

docs: pages ## the site: generated pages, pictures of real runs, every link checked
	$(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup peers ## measure opsctl beside its peers, into docs/benchmarks.md: an hour; as root it installs them
	$(BIN)/python -m bench

bench-quick: setup ## the same, small, in under a minute; prints and keeps nothing
	@$(BIN)/python -m bench --quick

build: setup ## wheel and sdist
	$(BIN)/python -m build --quiet

image: ## the container image
	version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' opsctl/__init__.py); \
	docker build --build-arg VERSION=$$version --tag opsctl --tag opsctl:$$version .

up: image ## a small SaaS with opsctl around it, in containers
	@deploy/stack/prepare
	docker compose --file deploy/stack/compose.yaml up --detach --wait

down: ## end it; its data stays
	docker compose --file deploy/stack/compose.yaml down

acceptance: setup services ## what needs root and apt, or takes minutes; as root it installs the services from Debian
	$(BIN)/python -m pytest -n $(WORKERS) -m 'acceptance and not soak' --require-services --no-header -q -rP

soak: setup services ## what takes longest: hundreds of hidden flips in what several sessions dumped
	$(BIN)/python -m pytest -n $(WORKERS) -m soak --require-services --no-header -q -rP

services: WANTED = $(SERVICES)
peers: WANTED = $(PEERS)
services peers:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; install="apt-get install -y --no-install-recommends -qq $(WANTED)"; \
		$$install || { apt-get update -qq && $$install; }; \
	fi

clean: ## remove what was made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis site
