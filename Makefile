# Targets: make help.

PYTHON ?= python3
# The Docker version of the demo and the tests, by its name in scripts/lab/docker_packages.py.
DOCKER ?= debian12
UNPACKED_DOCKER = build/docker/$(DOCKER)
# The etcd of make test-etcd, by its name in scripts/lab/etcd_packages.py.
ETCD ?= newest
ENDPOINTS ?= http://127.0.0.1:4001,http://127.0.0.1:2379

VENV := .venv
# Runs a module of scripts/ by its name.  -P: Python does not search the directory of the project for modules.
SCRIPT = env PYTHONPATH=scripts $(VENV)/bin/python -P -m
# A second environment, in which the packet code is plain Python: both forms must pass the same tests.
INTERPRETED := .venv-interpreted
# A copy of the tree whose packet code is compiled with sanitizers.
SANITIZED := build/sanitized
SANITIZED_PYTHON = env PYTHONPATH=. PYTHONMALLOC=malloc LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(abspath $(VENV))/bin/python
SANITIZED_TESTS := $(addprefix tests/,fuzz/test_packet.py fuzz/test_offload.py fuzz/test_engine.py \
	unit/packet unit/datapath/test_engine.py unit/datapath/test_tallies.py)
# The tests that run packet code: only that code differs between the compiled and the interpreted form.
PACKET_TESTS := $(addprefix tests/,unit/packet unit/datapath unit/backend/test_proxy.py unit/backend/test_udp_backend.py \
	unit/cli/test_cli.py unit/cli/test_cli_process.py fuzz golden)
# Among those, the tests that run none, and have the same result in all forms.
WITHOUT_PACKET_CODE := $(addprefix --ignore=tests/,unit/packet/test_compiled_types.py fuzz/test_subnet.py \
	fuzz/test_lease_filter.py fuzz/test_oracle.py)
# These tests wait most of the time: for leases to expire and for etcd to return.
WAITING_TESTS := $(patsubst %,tests/faults/test_%.py,etcd_outages change_over chaos new_address public_ip busy_store bad_config \
	both_stores lease secrets etcd etcd_v2 etcd_v3 etcd_v3_watch diagnosis no_false_alarm)
COMPILED_TESTS := $(addprefix tests/,unit fuzz golden contract/test_registry.py)
APART_TESTS := tests/soak tests/systemd tests/docker/matrix
NAMESPACE_TESTS := tests $(addprefix --ignore=,$(APART_TESTS) $(WAITING_TESTS) $(COMPILED_TESTS))
# These tests wait about half of the time: for the kernel, etcd and daemons.
WORKERS := $(shell echo $$((2 * $$(nproc))))
PACKET_CODE := $(wildcard flannelpy/packet/*.py flannelpy/packet/*.pxd)
SOURCES := $(shell find flannelpy -name '*.py' -o -name '*.pxd')
PACKAGING := pyproject.toml setup.py

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# python-etcd is distributed with a setup.py, which old versions of pip build in a deprecated way, with warnings.
export PIP_USE_PEP517 := 1
# The tests start the daemon more than a thousand times.  Without bytecode files, each start compiles all modules.
unexport PYTHONDONTWRITEBYTECODE
# On Debian the PATH of an ordinary user lacks sbin, the directory of ip and iptables.
export PATH := $(PATH):/usr/sbin:/sbin

# Prefix of a command that needs root.  For an ordinary user it is sudo, set up so that root leaves no file in the tree.
ifneq ($(shell id -u),0)
AS_ROOT = echo "make $@ works with network namespaces, which needs root: asking sudo."; \
	$(VENV)/bin/python -m compileall -q flannelpy; \
	sudo env PATH="$$PATH" CI="$${CI-}" PYTHONDONTWRITEBYTECODE=1 PYTEST_ADDOPTS="-p no:cacheprovider" \
	HYPOTHESIS_STORAGE_DIRECTORY=/root/.cache/hypothesis
endif

# $(call unskipped,PYTEST): run pytest; fail if a test was skipped.
unskipped = log=$$(mktemp); trap 'rm -f "$$log"' EXIT; { $(1); } | tee "$$log"; \
	if tail -n 1 "$$log" | grep -q skipped; then echo "A skipped test is not a passed test."; exit 1; fi

# $(call borrowing,DIRECTORY): create an environment that uses the libraries of .venv, and is otherwise empty.
borrowing = $(PYTHON) -m venv --clear --without-pip $(1); site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(VENV)/bin/python -c "$$site" >"$$($(1)/bin/python -c "$$site")/libraries.pth"
# $(call installing,DIRECTORY): install the arguments that follow into it, without a C compiler.
installing = CC=/bin/false $(VENV)/bin/pip --python $(1)/bin/python install --quiet --no-deps --no-build-isolation

.PHONY: help setup venv demo demo-down run lint unit check sanitize waiting compiled interpreted namespaces datapath timed test-faults \
	test test-docker test-etcd test-systemd dist soak bench bench-scale clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install missing programs (Debian)
	@sh scripts/setup.sh

venv: $(VENV)/stamp ## build .venv, with the packet code compiled

# Remove the results of an earlier build first: after a failed compilation the old code must not stay in use.
$(VENV)/stamp: $(PACKAGING) $(PACKET_CODE) | setup
	@echo "Building $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@rm -f flannelpy/packet/*.so
	@$(VENV)/bin/pip install --quiet --editable '.[dev]'
	@ls flannelpy/packet/*.so >/dev/null 2>&1 || echo "Without a C compiler the packet code runs interpreted, slower."
	@touch $@

# Install from an sdist: it holds nothing compiled, and the installation shows that it is complete.  The libraries are those
# of .venv.  The sdist is unpacked first, because pip caches the wheel that it built from an earlier archive.
$(INTERPRETED)/stamp: $(PACKAGING) $(SOURCES) $(VENV)/stamp
	@echo "Building $(INTERPRETED)"
	@$(call borrowing,$(INTERPRETED))
	@log=$(INTERPRETED)/sdist.log; $(VENV)/bin/python -m build --no-isolation --sdist --outdir $(INTERPRETED)/sdist >$$log 2>&1 \
		|| { cat $$log; exit 1; }
	@tar -xzf $(INTERPRETED)/sdist/*.tar.gz --strip-components=1 -C $(INTERPRETED)/sdist
	@$(call installing,$(INTERPRETED)) $(INTERPRETED)/sdist
	@cd $(INTERPRETED) && bin/python -c "import flannelpy.packet.ipv4 as ipv4; file = ipv4.__file__; \
		assert '$(INTERPRETED)' in file and file.endswith('.py'), file"
	@touch $@

# Debian's packages are unpacked, not installed: nothing outside of build is written.
build/docker/%: | $(VENV)/stamp
	@$(SCRIPT) lab.docker_packages $*

build/etcd/%: | $(VENV)/stamp
	@$(SCRIPT) lab.etcd_packages $*

demo: $(if $(RUNTIME),$(UNPACKED_DOCKER))
demo: $(VENV)/stamp ## three hosts whose containers ping each other (BACKEND=vxlan or host-gw; API=2; RUNTIME=docker; KEEP=1)
	@$(AS_ROOT) $(SCRIPT) lab.demo $(if $(BACKEND),--backend=$(BACKEND)) $(if $(API),--api=$(API)) \
		$(if $(RUNTIME),--$(RUNTIME)=$(DOCKER)) $(if $(KEEP),--keep)

demo-down: $(VENV)/stamp ## remove the hosts of make demo KEEP=1
	@$(AS_ROOT) $(SCRIPT) lab.demo down

run: $(VENV)/stamp ## run flannelpy on this machine: make run IFACE=eth1 (ENDPOINTS=…: the etcd cluster)
	@[ -n "$(IFACE)" ] || { echo "IFACE is missing; for example: make run IFACE=eth1"; exit 2; }
	@$(AS_ROOT) $(SCRIPT) lab.run $(IFACE) $(ENDPOINTS)

lint: $(VENV)/stamp ## style, import contracts, types
	@$(VENV)/bin/ruff check --quiet
	@$(VENV)/bin/ruff format --quiet --check
	@$(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/mypy

unit: $(VENV)/stamp ## unit and fuzz tests, which need no root
	@$(VENV)/bin/pytest -q tests/unit tests/fuzz

check: lint ## lint, unit tests and the contract of the stores: a minute, before every commit
	@$(call unskipped,$(VENV)/bin/pytest -q -m "not timed" --numprocesses=2 tests/unit tests/contract/test_registry.py)

# The packet code compiled with bounds checks and sanitizers, in a copy of the tree.  A violation ends the process with a
# report, or fails a test.  Python's own allocator would hide the end of a bytearray from the sanitizers.  In make test, it
# uses the processors while the tests in network namespaces wait.
sanitize: $(VENV)/stamp ## fuzz the compiled packet code under AddressSanitizer and UBSan
	@echo "With compiled packet code under sanitizers:"
	@rm -rf $(SANITIZED)
	@mkdir -p $(SANITIZED)
	@cp -R flannelpy tests scripts $(PACKAGING) README.md LICENSE $(SANITIZED)
	@rm -f $(SANITIZED)/flannelpy/packet/*.so
	@cd $(SANITIZED) && export CC=$(CC) FLANNELPY_SANITIZE=1; \
		nice -n 19 $(abspath $(VENV))/bin/python setup.py build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }
	@cd $(SANITIZED) && $(SANITIZED_PYTHON) -c "import flannelpy.packet.ipv4 as ipv4; file = ipv4.__file__; \
		assert '$(SANITIZED)' in file and file.endswith('.so'), file"
	@cd $(SANITIZED) && $(call unskipped,nice -n 19 $(SANITIZED_PYTHON) -m pytest -q --capture=sys $(SANITIZED_TESTS) \
		$(WITHOUT_PACKET_CODE))

waiting: $(VENV)/stamp # a part of make test
	@echo "With failing etcd clusters:"
	@$(call unskipped,$(AS_ROOT) $(VENV)/bin/pytest -q --numprocesses=6 --dist=load --maxschedchunk=1 -m "not soak" \
		$(WAITING_TESTS))

compiled: $(VENV)/stamp # a part of make test
	@echo "With compiled packet code:"
	@$(call unskipped,$(VENV)/bin/pytest -q -m "not timed and not soak" --numprocesses=3 $(COMPILED_TESTS))

interpreted: $(INTERPRETED)/stamp # a part of make test
	@echo "With interpreted packet code:"
	@$(call unskipped,$(INTERPRETED)/bin/python -P -m pytest -q -m "not timed and not soak" --numprocesses=2 $(PACKET_TESTS) \
		$(WITHOUT_PACKET_CODE))

test-faults: $(VENV)/stamp ## failures of etcd, hosts and daemons, under traffic (a part of make test)
	@$(call unskipped,$(AS_ROOT) $(VENV)/bin/pytest -q -m "not soak" tests/faults)

# ONLY=ways: only tests/docker/matrix/test_ways.py.
test-docker: $(VENV)/stamp $(UNPACKED_DOCKER) ## real Docker in many settings: half an hour (DOCKER=newest; ONLY=ways)
	@$(call unskipped,$(AS_ROOT) env FLANNELPY_DOCKER=$(DOCKER) $(VENV)/bin/pytest -q \
		$(if $(ONLY),tests/docker/matrix/test_$(ONLY).py,tests/docker))

# Debian 12, on which the other targets run, has etcd 3.4; its later suites have 3.5, whose errors have another form.
ETCD_TESTS := tests/contract/test_registry.py $(addprefix tests/faults/test_etcd,.py _v3.py _v3_watch.py _outages.py)
test-etcd: $(VENV)/stamp build/etcd/$(ETCD) ## contract and outage tests with Debian's newest etcd 3.5 (ETCD=debian13)
	@build/etcd/$(ETCD)/usr/bin/etcd --version
	@$(call unskipped,$(AS_ROOT) env PATH="$(abspath build/etcd/$(ETCD))/usr/bin:$$PATH" $(VENV)/bin/pytest -q \
		--numprocesses=3 --dist=loadfile $(ETCD_TESTS))

# All tests of a file run in one worker, because they share a lab.  The files keep their order: by default the files with
# few tests come last, and those have the long tests.
namespaces: $(VENV)/stamp build/docker/debian12 # a part of make test
	@echo "In network namespaces, by $(WORKERS) workers:"
	@$(call unskipped,$(AS_ROOT) $(VENV)/bin/pytest -q -m "not timed and not soak" --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder \
		$(NAMESPACE_TESTS))

# Tests of the udp backend, again with hosts that use the kernel, and with a host that does beside one that does not.
MIXED_TESTS := $(addprefix tests/,netns/test_overlay.py netns/test_offload.py faults/test_intruders.py)
KERNEL_TESTS := $(MIXED_TESTS) $(addprefix tests/,netns/test_counters.py netns/test_mtu.py netns/test_hostile_container.py \
	faults/test_device.py faults/test_restarts.py)
# $(call over_datapaths,DATAPATHS,TESTS[,WORD]); WORD: leave out tests with it in their names
over_datapaths = $(call unskipped,$(AS_ROOT) env LAB_DATAPATH=$(1) $(VENV)/bin/pytest -q --numprocesses=$(WORKERS) \
	--dist=loadfile -m "not timed and not soak and not loop" -k "not vxlan and not host-gw$(if $(3), and not $(3))" $(2))
comma := ,
# The suites of udp, for make soak.  Failures of etcd are the same for both datapaths.  The files of the last line say
# what a daemon logs, has and leaves when it dies or hangs: with the kernel's datapath, the device stays and carries packets.
ALL_KERNEL_TESTS = tests/netns tests/faults $(addprefix --ignore=,$(WAITING_TESTS) $(addprefix tests/, \
	netns/test_vxlan.py netns/test_vxlan_ports.py netns/test_bench.py \
	netns/test_daemon.py netns/test_lifecycle.py netns/test_check.py netns/test_cni.py faults/test_ownership.py))
datapath: $(VENV)/stamp # a part of make test
	@echo "Between hosts with the kernel's datapath, then with a host that has the loop, by $(WORKERS) workers:"
	@$(call over_datapaths,kernel,$(KERNEL_TESTS))
	@$(call over_datapaths,kernel$(comma)loop,$(MIXED_TESTS),gigabyte)

timed: $(VENV)/stamp # a part of make test
	@echo "Tests that measure time, alone:"
	@$(call unskipped,$(AS_ROOT) $(VENV)/bin/pytest -q -m "timed and not soak" tests $(addprefix --ignore=,$(APART_TESTS)))

test-systemd: $(VENV)/stamp ## the units in a Debian that boots in a namespace, with Docker, firewalld and ufw: minutes
	@$(call unskipped,$(AS_ROOT) $(VENV)/bin/pytest -q -s --timeout=900 tests/systemd)

# The wheel is built from the sdist, which holds nothing compiled.  The environment of the interpreted packet code was
# installed from an sdist, too.
dist: $(INTERPRETED)/stamp ## an sdist and a wheel for this Python in dist/, checked, installed and run without a compiler
	@echo "Building dist"
	@rm -rf dist
	@mkdir -p build
	@log=build/dist.log; $(VENV)/bin/python -m build --no-isolation --outdir dist >$$log 2>&1 || { cat $$log; exit 1; }
	@$(VENV)/bin/twine check --strict dist/*
	@$(call borrowing,build/installed)
	@$(call installing,build/installed) --no-index dist/*.whl
	@version=$$(cd build && installed/bin/flannelpy -version 2>&1); echo "The wheel: $$version"; [[ $$version = *" (compiled)" ]]
	@version=$$(cd build && ../$(INTERPRETED)/bin/flannelpy -version 2>&1); echo "The sdist: $$version"; \
		[[ $$version = *" (interpreted)" ]]

# Tests that do not need the machine to themselves run in parallel, the longest first.
test: $(INTERPRETED)/stamp ## all tests and lint: 18 minutes
	@ls flannelpy/packet/*.so >/dev/null 2>&1 || { echo "The packet code doesn't compile here."; exit 1; }
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target waiting interpreted compiled dist lint
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target namespaces sanitize
	@$(MAKE) --no-print-directory datapath
	@$(MAKE) --no-print-directory timed

SOAK = $(AS_ROOT) env $(if $(SECONDS),FLANNELPY_SOAK_SECONDS=$(SECONDS)) $(if $(SEED),FLANNELPY_SEED=$(SEED)) \
	$(VENV)/bin/pytest -q -s --timeout=0
# Of the tests of make test, the variants that it omits.
VARIANTS = tests $(addprefix --ignore=,$(APART_TESTS))
soak: $(VENV)/stamp ## random failures for 90 minutes (ONLY=chaos: one test; SECONDS=60: the length of each)
	@$(call unskipped,$(SOAK) -m "not timed" $(if $(ONLY),tests/soak/test_$(ONLY).py,tests/soak))
	@$(if $(ONLY),,$(call unskipped,$(SOAK) --numprocesses=$(WORKERS) --dist=load --maxschedchunk=1 -m "soak and not timed" \
		$(VARIANTS)))
	@$(if $(ONLY),,$(call over_datapaths,auto,$(ALL_KERNEL_TESTS)))
	@$(if $(ONLY),,$(call over_datapaths,auto$(comma)loop,$(MIXED_TESTS)))
	@$(if $(ONLY),,$(call unskipped,$(SOAK) -m "soak and timed" $(VARIANTS)))

bench: $(INTERPRETED)/stamp ## compare with socat and VXLAN, into docs/benchmarks.md (ARGS="--only tcp": a part)
	@$(AS_ROOT) $(SCRIPT) benchmark $(ARGS)

bench-scale: $(VENV)/stamp ## 10 to 300 hosts on one etcd, by either API, into docs/benchmarks.md (ARGS=--help: options)
	@$(SCRIPT) benchmark.scale $(ARGS)

clean: ## remove everything that make has built
	@rm -rf $(VENV) $(INTERPRETED) build dist *.egg-info flannelpy/packet/*.so .*_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
