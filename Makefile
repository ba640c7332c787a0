# Everything a user or CI runs. `make help` lists the targets.

SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help

# One way to compile for everything but the race detector, so that a package is
# compiled once.
export CGO_ENABLED := 0

VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GO_FILES = $(shell find cmd internal api -name '*.go' -not -name '*_test.go' 2>/dev/null)

# What Debian provides, by a program or file that each package brings.
# "braid lab up" names what is missing on its own too.
DEBIAN := /usr/bin/linux.uml=user-mode-linux /usr/sbin/runc=runc /usr/sbin/iptables=iptables \
	/bin/busybox=busybox-static /sbin/modprobe=kmod /usr/sbin/conntrack=conntrack /sbin/bridge=iproute2
# The race detector needs a C compiler; tests measure memory with time and read nftables rules as nft prints them;
# Cilium compiles its programs where it runs; with ipvlan it takes a kernel under QEMU.
DEBIAN_TEST := /usr/bin/gcc=gcc /usr/include/stdlib.h=libc6-dev /usr/sbin/nft=nftables /usr/bin/clang-19=clang-19 /usr/sbin/ipset=ipset /usr/bin/qemu-system-x86_64=qemu-system-x86 /usr/bin/time=time

.PHONY: help deps test-deps build programs generate lint test test-unit test-guest test-fuzz test-cluster test-migrate test-emulated bench bench-pods demo demo-down clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

deps: ## install the Debian packages that the lab needs
test-deps: DEBIAN += $(DEBIAN_TEST)
test-deps: ## install the Debian packages that the tests need
deps test-deps:
	@missing=$$(for p in $(DEBIAN); do [ -e "$${p%%=*}" ] || echo "$${p##*=}"; done); \
	if [ -n "$$missing" ]; then \
		echo "installing: $$(echo $$missing)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi

build: bin/braid bin/braidd bin/braid-cni ## static bin/braid, bin/braidd and bin/braid-cni

# grpcnotrace: gRPC's traces are web pages. Their templates call any method by
# its name, so that the linker would keep every method there is, a quarter of
# braidd.
bin/%: go.mod go.sum $(GO_FILES)
	go build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# Before the tests that run them, whose time is limited: on a new machine this
# takes longer than they do. The benchmark needs what every lab needs.
PROGRAMS := --all
bench bench-pods: PROGRAMS :=
programs: build ## all programs that a lab may run: Kubernetes, containerd, Flannel, Cilium, ...
	bin/braid lab build $(PROGRAMS) >/dev/null

generate: ## the CRDs of deploy/crds and the copying of api/, from the types there
	go tool controller-gen crd object paths=./api/... output:crd:dir=deploy/crds output:object:dir=api/v1alpha1

lint: ## gofmt, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

# Two tiers at a time: guests wait for their kernels while unit tests compute and
# inputs are generated. Clusters have the machine to themselves. Beside tests that
# make and end namespaces all the time, both take many times as long: the kernel
# ends namespaces one batch at a time.
test: test-deps lint build ## everything that CI runs
	$(MAKE) -j 2 test-unit test-guest test-fuzz
	$(MAKE) test-cluster

# As root, the tests that use the machine's own kernel run too. The comparison
# with the reference plugins runs drivers whose own tests look for races.
HOST_TIER := $(shell [ $$(id -u) = 0 ] && echo net || echo unit)

test-unit: test-deps ## unit tests and tests in network namespaces of this machine, with -race
	BRAID_TIER=$(HOST_TIER) CGO_ENABLED=1 go test -race $$(go list ./... | grep -v /internal/differential)
	BRAID_TIER=$(HOST_TIER) go test ./internal/differential

# What the machine's own kernel can do is tested there. In a guest firewall and
# portmap have the old iptables, and hostdev hardware to lose.
IN_GUEST := ./internal/rtnl/... ./internal/driver ./internal/differential ./internal/migrate/leftover ./internal/migrate/preflight \
	$(addprefix ./internal/driver/,bridge vlan ipvlan dummy vrf firewall portmap hostdev)

test-guest: test-deps ## tests under a guest kernel: what this machine's kernel may lack
	go build -o bin/guest-exec ./internal/guest/exec
	BRAID_TIER=unit go test -run TestThereAreEnough ./internal/differential # builds the reference plugins, here
	BRAID_TIER=guest go test -exec $(CURDIR)/bin/guest-exec $(IN_GUEST)

# What reaches Braid from pods, other programs and its own disk. An input that
# fails is left in testdata/fuzz of the package, from where plain tests run it.
# An interrupt ends each: of -fuzztime, go test makes a failure when workers and
# coordinator do not learn of its end at the same time, on a busy machine.
FUZZ := plan/FuzzParseNetworks plan/FuzzParseNetwork wire/FuzzDecode wire/FuzzDecodeNote store/FuzzDecodeRecord devices/FuzzDeviceInformation
FUZZTIME ?= 30s

test-fuzz: test-deps ## the parsers of what others write, each with generated input for 30 seconds
	@printf '%s\n' $(FUZZ) | xargs -P 2 -I{} bash -o pipefail -c 't={}; \
		nice go test -run "^$$" -fuzz "^$${t#*/}\$$" -exec "timeout --preserve-status --foreground -s INT -k 60 $(FUZZTIME)" -fuzzminimizetime 5s -parallel 1 ./internal/$${t%/*} 2>&1 | sed "s|^|$$t: |"'

test-cluster: test-deps programs ## the scenarios on a real cluster
	BRAID_TIER=cluster go test -p 2 -timeout 30m -v -run 'Cluster|^TestA[0-9]|^TestCrash' ./internal/demo ./internal/e2e ./internal/lab ./internal/kube ./internal/confdir/explain ./internal/migrate/confswitch

# Not part of test: it counts lost requests, and wants a machine to itself.
test-migrate: test-deps programs ## migrations of live clusters, under load and through faults
	BRAID_TIER=cluster go test -timeout 30m -v -run '^TestMigrate' ./internal/demo

# Not part of test: five minutes for what test-cluster shows in two halves.
test-emulated: test-deps programs ## Cilium and ipvlan on one node, under QEMU
	BRAID_TIER=cluster go test -timeout 20m -v -run Emulated ./internal/demo

BENCH_PODS = BRAID_TIER=cluster go test -timeout 30m -run '^$$' -bench Pods -benchtime 1x ./internal/e2e

bench-pods: test-deps programs ## the part of bench that is about whole pods
	$(BENCH_PODS) | go run ./internal/bench

# What this machine's kernel lacks is measured on Debian's under QEMU, where
# programs are slow: there only the share of bare netlink says something.
bench: test-deps programs ## Braid beside the upstream plugins, as ratios
	go build -o bin/guest-exec ./internal/guest/exec
	BRAID_TIER=unit go test -run TestThereAreEnough ./internal/differential # builds the reference plugins, here
	{ $(BENCH_PODS); \
	  BRAID_TIER=net go test -run '^$$' -bench . ./internal/ipam/... ./internal/store ./internal/plan; \
	  BRAID_TIER=net go test -p 1 -run '^$$' -bench . -benchtime 20x -count 5 ./internal/driver/...; \
	  BRAID_TIER=guest go test -p 1 -exec '$(CURDIR)/bin/guest-exec -kernel qemu' -run '^$$' -bench . -count 3 \
		./internal/driver/vlan ./internal/driver/ipvlan ./internal/driver/dummy ./internal/driver/vrf; \
	} | go run ./internal/bench

demo: deps build ## pods in VLANs on a real cluster of this machine
	bin/braid lab demo

demo-down: ## remove everything that "make demo" started
	bin/braid lab down

clean: ## remove what was built
	rm -rf bin out
