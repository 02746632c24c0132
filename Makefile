# bftfs: `make up` starts a cluster and mounts it, `make test` runs the tests; both from nothing.
#
# Everything that the project needs is installed by these targets: Debian packages (as root), a
# virtual environment in .venv, the project in it. A second run finds it all there and goes on.

PYTHON ?= python3
DATA ?= $(HOME)/.local/share/bftfs
MOUNT ?= $(HOME)/bftfs
BIN ?= $(HOME)/.local/bin
VENV := .venv
BFTFS := $(VENV)/bin/python -m bftfs

# What the project needs at run time, and what its tests use besides.
PACKAGES := fuse3 libfuse3-dev pkg-config gcc python3-dev python3-venv
TEST_PACKAGES := $(PACKAGES) curl git make rsync sqlite3 attr acl iproute2 procps tar libc6-dev vim-tiny systemd postmark

# For the pages of `bftfs ui`: the first that is there, or that apt knows. Ubuntu has neither; without
# a browser its tests are skipped (but they fail where CI=true).
BROWSERS := chromium-headless-shell chromium

# All that runs here keeps its bytecode: a node, a mount or a command that compiles itself at every
# start takes twice as long to start, and the tests start thousands.
unexport PYTHONDONTWRITEBYTECODE

# Tests run on two cores at once: those that share nothing one by one; those that start node
# processes, or mount, file by file: what a file shares is started once.
PURE_TESTS := tests/unit tests/papers tests/properties tests/seams tests/simulation tests/fuzz \
	tests/transcripts tests/chaos

.PHONY: up down status link test check format deb clean packages test-packages browser help

help:
	@echo "make up       start a local cluster of six nodes and mount it at $(MOUNT)"
	@echo "make down     unmount and stop it; the data stays in $(DATA)"
	@echo "make status   how the cluster is"
	@echo "make test     run all tests; TESTS=tests/unit/wire: only those"
	@echo "make check    linters, types and import contracts only"
	@echo "make deb      build a Debian package in dist/"
	@echo "DATA=DIR, MOUNT=DIR and BIN=DIR (of the command bftfs) choose other places."

up: $(VENV)/.installed link
	@$(BFTFS) up --data "$(DATA)" --mount "$(MOUNT)"

# The command, where shells find it. A file of that name that is not ours is left alone.
link: $(VENV)/.installed
	@if [ -e "$(BIN)/bftfs" ] && [ ! "$(BIN)/bftfs" -ef $(VENV)/bin/bftfs ]; then \
	    echo "$(BIN)/bftfs is another bftfs, and stays; this one is $(CURDIR)/$(VENV)/bin/bftfs"; \
	elif [ ! -e "$(BIN)/bftfs" ]; then \
	    mkdir -p "$(BIN)" && ln -sf "$(CURDIR)/$(VENV)/bin/bftfs" "$(BIN)/bftfs" \
	        && echo "The command bftfs is $(BIN)/bftfs"; \
	fi; \
	case ":$$PATH:" in *":$(BIN):"*) ;; *) \
	    echo "Your shell does not look there yet: export PATH=\"$(BIN):\$$PATH\"";; esac

down: $(VENV)/.installed
	@$(BFTFS) down --data "$(DATA)"

status: $(VENV)/.installed
	@$(BFTFS) status --data "$(DATA)"

test: test-packages browser $(VENV)/.installed-test
ifdef TESTS
	$(VENV)/bin/python -m pytest $(TESTS)
else
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=worksteal $(PURE_TESTS)
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
		$(addprefix --ignore=,$(PURE_TESTS))
endif

check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

deb: packages
	@docs/packaging/debian/build dist

# --- installation -------------------------------------------------------------------------------

# Installs what dpkg does not know of; without root, says exactly what to install, and stops.
define install_packages
	@missing=""; for package in $(1); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' \
	        || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	    if ! command -v apt-get >/dev/null; then \
	        echo "bftfs needs these packages (Debian's names):$$missing"; \
	        echo "Install them with your system's package manager, then run make again."; exit 1; \
	    elif [ "$$(id -u)" = 0 ]; then \
	        echo "Installing$$missing ..."; \
	        apt-get update -qq >/dev/null || true; \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing \
	            >/dev/null || { echo "Could not install:$$missing (see the messages above)"; exit 1; }; \
	    else \
	        echo "bftfs needs these Debian packages:$$missing"; \
	        echo "Install them as root, then run make again:"; \
	        echo "    sudo apt-get install$$missing"; exit 1; \
	    fi; \
	fi
endef

packages:
	$(call install_packages,$(PACKAGES))

test-packages: | packages
	$(call install_packages,$(TEST_PACKAGES))

browser: | test-packages
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit; done; \
	known() { for name in $(BROWSERS); do \
	    LC_ALL=C apt-cache policy $$name 2>/dev/null | grep -q 'Candidate: [^(]' && echo $$name && return; \
	done; }; \
	package=$$(known); \
	if [ -z "$$package" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq >/dev/null || true; package=$$(known); \
	fi; \
	if [ -z "$$package" ]; then \
	    echo "The tests in a browser are skipped: there is none of $(BROWSERS), and no package of it"; \
	elif [ "$$(id -u)" != 0 ]; then \
	    echo "The tests in a browser are skipped until you install one: sudo apt-get install $$package"; \
	else \
	    echo "Installing $$package ..."; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package >/dev/null \
	        || { echo "Could not install: $$package (see the messages above)"; exit 1; }; \
	fi

$(VENV)/bin/python: | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "bftfs needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[ui]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,packaging]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info
