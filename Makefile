# Everything a developer or a newcomer runs. `make` alone lists the targets.
# What needs root says so; what needs packages installs them.

PYTHON ?= python3
BIN := .venv/bin
DEBIAN := busybox-static containernetworking-plugins curl docker-cli? docker.io etcd-client etcd-server ethtool gcc iperf3 iproute2 iptables iputils-ping lxc mmdebstrap nftables openssl podman procps python3-dev python3-venv runc systemd-container tcpdump util-linux vagrant

.DEFAULT_GOAL := help
.PHONY: help system check format test test-unit test-boot test-managers test-kernels test-releases test-arm64 test-image dist deb image lab bench interop clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.venv/ready: pyproject.toml $(wildcard encap/*/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

system: ## (root) install the Debian packages that the lab and the tests use
	@.ci/packages $(DEBIAN)

check: .venv/ready ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One process for each core, and the tests of one file in one of them, in order; make test SIDE_BY_SIDE= for one after the other.
SIDE_BY_SIDE ?= -n auto --maxprocesses=4 --dist=loadfile
test: system .venv/ready ## (root) all tests, with real etcd and real kernel devices
	$(BIN)/pytest $(SIDE_BY_SIDE) -m 'not managers'

test-unit: .venv/ready ## the tests that need neither root nor etcd
	$(BIN)/pytest $(SIDE_BY_SIDE) -m 'not root and not etcd'

# make test-boot RELEASE=bookworm boots Debian 12, for which the package is then built.
RELEASE ?= trixie
test-boot: system .venv/ready ## (root) package, units and the Vagrant lab on booted Debians; etcd with TLS
	FLANNELD_PY_RELEASE=$(RELEASE) $(BIN)/pytest -m 'not managers' tests/boot tests/netns/test_etcd_cluster.py

test-managers: system .venv/ready ## (root) NetworkManager, dhcpcd, firewalld, ufw, networkd on booted Debians beside the agent
	FLANNELD_PY_RELEASE=$(RELEASE) $(BIN)/pytest tests/boot/test_managers.py

KERNELS ?= bookworm,trixie,sid
test-kernels: system .venv/ready ## (root) a choice of the tests on Debian's kernels, emulated; KERNELS=trixie, ARGS=--help
	@.ci/packages cpio kmod qemu-system-x86
	$(BIN)/python -m tests.matrix kernels --in $(KERNELS) $(ARGS)

RELEASES ?= bookworm,trixie,sid
test-releases: system .venv/ready ## (root) lab, engines, a choice of the tests in Debian's releases; RELEASES=sid, ARGS=--help
	@.ci/packages rsync
	$(BIN)/python -m tests.matrix releases --in $(RELEASES) $(ARGS)

test-arm64: .venv/ready ## the tests of the packet path with the arm64 package's own files, emulated; make deb ARCH=arm64 first
	@.ci/packages mmdebstrap qemu-user-static
	@nice deploy/debian/emulate arm64

test-image: system .venv/ready ## (root) the container image in Docker and podman; IMAGE= names one that is made
	@.ci/packages buildah
	$(BIN)/pytest tests/image

dist: .venv/ready ## the wheel and the source distribution, into dist/
	$(BIN)/python -m build --outdir dist .

# make deb ARCH=arm64 builds it on amd64 for arm64, and the other way round.
deb: ## the Debian package, into dist/; on the Debian release that it is for
	@deploy/debian/build "$(VERSION)" "$(ARCH)"

image: ## (root) the container image, into dist/, for `docker load` and `podman load`; Debian's packages, no registry
	@.ci/packages buildah gcc mmdebstrap python3-dev python3-venv
	@deploy/container/build $(VERSION)

# make lab ENGINE=docker, lxc or podman: their real containers; the table, and it ends.
# make lab HOSTS=5, make lab ARGS='--once --json lab.json'; see python -m tests.lab --help
HOSTS ?= 3
ENGINE ?= netns
lab: system .venv/ready ## (root) hosts, etcd, agents and containers on this machine, and a table of who reaches whom
	$(BIN)/python -m tests.lab$(if $(filter netns,$(ENGINE)),,.engine $(ENGINE)) --hosts $(HOSTS) $(ARGS)

bench: system .venv/ready ## (root) measure; prints tables and writes tests/bench/results/*.json
	$(BIN)/python -m tests.bench $(ARGS)

# ARGS='-k takeover' chooses some of it. FLANNEL_SOURCE=/path/to/checkout: its own functional suite; needs go.
interop: system .venv/ready ## (root) ours beside flannel's own daemon: make interop FLANNELD=/path/to/flanneld
	FLANNELD='$(FLANNELD)' FLANNEL_SOURCE='$(FLANNEL_SOURCE)' $(BIN)/pytest tests/interop $(ARGS)

clean: ## remove what was built, and what a crashed lab left
	-[ ! -x $(BIN)/python ] || [ "$$(id -u)" != 0 ] || $(BIN)/python -m tests.lab --clean
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
