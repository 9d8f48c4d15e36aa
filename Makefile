# make demo | test | test-aiosmtpd | test-faults | test-ops | wheels | deb | docs | site | simulate | fuzz | bench | bench-peers | lint | clean. Each makes its own virtual environment, .venv, on first use.
#
# PYTHON=python3.12 make test    another interpreter (make clean first)
# make test TESTS=tests/unit     a part of the tests; ARGS='-m slow -x' goes to pytest
# SMTPRAFT_REQUIRE_EXTENSIONS=1  no compiler is an error; without it the plain half serves alone

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TESTS ?=
ARGS ?=
BIN := .venv/bin
SOURCES := pyproject.toml setup.py smtpraft/_fastlog.pyx smtpraft/_fastcodec.pxi smtpraft/_fastcommands.pxi \
	smtpraft/_fastlog.h smtpraft/smtp/_fastscan.pyx smtpraft/smtp/_fastscan.h smtpraft/cli/bench/_fastload.pyx \
	smtpraft/storage/_fastwal.pyx smtpraft/storage/_fastwal.h \
	$(wildcard smtpraft/consensus/*.py smtpraft/consensus/*.pxd smtpraft/smtp/*.py smtpraft/smtp/*.pxd)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_WARN_SCRIPT_LOCATION := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test test-aiosmtpd test-faults test-ops wheels deb docs site simulate fuzz bench bench-peers lint clean
.DELETE_ON_ERROR:

demo: .venv/.run
	@$(BIN)/smtpraft demo

test: .venv/.test
	@$(BIN)/python -m pytest $(TESTS) $(ARGS)

# aiosmtpd's own tests, which are installed with it, against our two engines in its place; what does not apply to them is
# listed, each with its reason, in tests/integration/aiosmtpd_suite/left_out.toml.
test-aiosmtpd: .venv/.interface
	@for engine in fast aiosmtpd; do echo "aiosmtpd's tests: engine $$engine" && $(BIN)/python -m pytest \
		-c tests/integration/aiosmtpd_suite/suite.ini --rootdir . -p tests.integration.aiosmtpd_suite.plugin \
		--smtp-engine $$engine --pyargs aiosmtpd.tests.test_smtp aiosmtpd.tests.test_handlers \
		aiosmtpd.tests.test_smtpsmuggling $(ARGS) || exit 1; done

# Full, frozen and failing disks, as root on Debian: file systems of their own are mounted, and taken away afterwards.
test-faults: .venv/.test
	@test "$$(id -u)" = 0 || { echo "make test-faults mounts file systems: run it as root"; exit 1; }
	@command -v strace mkfs.ext4 fsfreeze >/dev/null && test "$$(command -v strace mkfs.ext4 fsfreeze | wc -l)" = 3 \
		|| { apt-get update -qq && apt-get install -qq -y strace e2fsprogs util-linux >/dev/null; }
	@$(BIN)/python -m pytest -m "fault and (privileged or not slow)" tests/fault/test_disk_room.py \
		tests/fault/test_cluster_disks.py $(ARGS)

# Beside real nodes: Prometheus, Chromium, HAProxy, the release before, checkers of others. As root on Debian it installs
# what is missing; elsewhere a test whose program is missing is left out, and says so. Screenshots: .screenshots
test-ops: .venv/.ops
	@command -v prometheus promtool haproxy chromium openssl git >/dev/null \
		&& test "$$(command -v prometheus promtool haproxy chromium openssl git | wc -l)" = 6 || test "$$(id -u)" != 0 \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			prometheus haproxy chromium openssl git >/dev/null; }
	@test "$$(id -u)" != 0 || export SMTPRAFT_REQUIRE_PROGRAMS=1; PATH="$(CURDIR)/$(BIN):$$PATH" SMTPRAFT_SCREENSHOTS="$${SMTPRAFT_SCREENSHOTS:-$(CURDIR)/.screenshots}" \
		$(BIN)/python -m pytest -m ops tests/ops $(ARGS)

# Fresh seeds for some minutes, then the planted bugs, with their table in docs/reliability.md: half an hour and more.
simulate: .venv/.test
	@$(BIN)/smtpraft simulate --fresh --seeds 500 --seconds 20 --jobs 2 $(ARGS)
	@$(BIN)/python -m tests.simulation.planted --jobs 2

# Into dist/: built in clean trees, checked, installed into fresh environments and tried there (ARGS=--twice: built again, byte for byte).
wheels: .venv/.release
	@$(BIN)/python -m release.wheels $(ARGS)

# Into dist/: a package for Debian with the units, of dist/'s wheel for Debian's Python if there is one, else of the source.
deb: .venv/.release
	@$(BIN)/python -m release.deb $(ARGS)

# The tables of docs/configuration.md, from the code.
docs: .venv/.run
	@$(BIN)/python -m release.reference

# docs/ as a site, in site/: every warning is an error.
site: .venv/.site
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs site
	@echo "site: site/index.html"

# A million inputs to what reads strangers' bytes, compiled against plain, from a fresh seed: some minutes.
fuzz: .venv/.test
	@$(BIN)/python -m tests.unit.fuzz $(ARGS)

# The hot paths. Each run is kept in .benchmarks; ARGS=--benchmark-compare sets the last one beside it.
bench: .venv/.bench
	@$(BIN)/python -m pytest benches --benchmark-enable --benchmark-only --benchmark-group-by=group \
		--benchmark-columns=median,iqr,min,max,rounds --benchmark-warmup=on --benchmark-autosave $(ARGS)
	@$(BIN)/python -m benches.ratios

# Everything with peers beside it, as root on Debian: a quarter of an hour. ARGS=--quick, '--only peers,logpeers', '--write docs/performance.md'
bench-peers: .venv/.peers
	@test "$$(id -u)" = 0 || { echo "make bench-peers installs and starts Postfix, Exim and etcd: run it as root"; exit 1; }
	@command -v smtp-source etcd >/dev/null && test "$$(command -v smtp-source etcd | wc -l)" = 2 \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postfix etcd-server >/dev/null; }
	@$(BIN)/python -m benches.system --install
	@$(BIN)/python -m benches.system $(ARGS)

lint: .venv/.lint
	@echo "lint: ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@echo "lint: mypy" && $(BIN)/mypy
	@if $(BIN)/python -c "import smtpraft._fastlog" 2>/dev/null; \
		then echo "lint: stubtest" && $(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml smtpraft._fastlog smtpraft.smtp._fastscan smtpraft.storage._fastwal; fi

# pip knows dependency groups (PEP 735) since 25.1; Debian 12 brings 23.0.
.venv/.made:
	@echo "venv: $$($(PYTHON) --version) in .venv"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@touch $@

.venv/.run: .venv/.made $(SOURCES)
	@echo "venv: smtpraft"
	@$(BIN)/python -m pip install -qq --editable .
	@$(BIN)/python -c "from smtpraft import fastlog; print('venv: compiled half:', 'yes' if fastlog.COMPILED else 'NO')"
	@touch $@

.venv/.test .venv/.interface .venv/.bench .venv/.peers .venv/.lint .venv/.ops .venv/.release .venv/.site: .venv/.%: .venv/.run
	@echo "venv: what $* needs"
	@$(BIN)/python -m pip install -qq --group $*
	@touch $@

clean:
	rm -rf .venv build dist site .screenshots smtpraft.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f smtpraft/_fastlog.c smtpraft/_fastlog.*.so smtpraft/smtp/_fastscan.c smtpraft/smtp/*.so smtpraft/storage/_fastwal.c smtpraft/storage/_fastwal.*.so smtpraft/cli/bench/_fastload.c smtpraft/cli/bench/_fastload.*.so smtpraft/consensus/*.so
	find smtpraft tests benches -name __pycache__ -type d -prune -exec rm -rf {} +
