# Copyright The hako authors.
# SPDX-License-Identifier: Apache-2.0

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION)
TOOL     = $(GO) tool -modfile=tools/go.mod
# hack/tools builds it once; without that every run links it anew.
LINTER   = $(or $(wildcard .cache/bin/golangci-lint),$(TOOL) golangci-lint)
FUZZTIME ?= 30s
GOFILES  = $(shell git ls-files --cached --others --exclude-standard '*.go')

.DEFAULT_GOAL := help
.PHONY: help build demo test test-runtimes cover lint fmt generate golden conformance fuzz bench images release

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/hako for this machine
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o bin/hako ./cmd/hako

demo: build ## Build an example image, without a registry or root of your own
	$(GO) run ./demo

test: ## Run all tests; each group that something of the machine is missing for is named with its reason
	$(GO) run ./hack/gotest -timeout 30m ./...

# Neither make test nor CI does: to build the programs takes longer than all else.
RUNTIMES = kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl etcd containerd containerd-shim-runc-v2 runsc
test-runtimes: ## Run hako's images under a real kubelet and containerd, and under gVisor, as root
	hack/tools $(RUNTIMES)
	$(GO) test -count=1 -tags runtimes -timeout 30m ./test/kubernetes ./test/gvisor

cover: ## Run all tests and show how much of the code they reach
	$(GO) test -coverprofile=bin/cover.out ./... && $(GO) tool cover -func=bin/cover.out | tail -1

lint: ## Check format, vet for every platform, architecture and lint rules
	@out=$$(gofmt -l $(GOFILES)); test -z "$$out" || { echo "not formatted (make fmt):"; echo "$$out"; exit 1; }
	for p in linux/amd64 linux/arm64 darwin/arm64 windows/amd64; do echo "vet $$p"; CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) vet ./... || exit 1; done
	$(GO) test -count=1 ./internal/ && $(LINTER) run

fmt: ## Format all files
	$(TOOL) gofumpt -w $(GOFILES)

generate: ## Run code generators
	$(GO) generate ./...

golden: ## Rewrite expected outputs; review the difference like code
	$(GO) test ./cmd/hako -update

SANDBOX ?= inplace,namespace
conformance: ## Build every case with BuildKit and with hako in each SANDBOX (inplace,namespace), compare, write docs/conformance.md
	$(GO) test -count=1 -timeout 30m ./test/conformance -sandbox $(SANDBOX) -document docs/conformance.md

# Go's default would spend a minute on shortening each new input.
fuzz: ## Run each fuzz target for FUZZTIME (30s)
	@grep -rlE '^func Fuzz' --include='*_test.go' internal | while read f; do for t in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/p' $$f); do \
	echo "$$f $$t"; $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x ./$$(dirname $$f) || exit 1; done; done

BENCH   ?= -n 5 -o docs/measurements.md
bench: ## Measure hako in a pod against BuildKit on the host, as root; BENCH="-small -n 1" for a quick look
	$(GO) run ./test/bench $(BENCH)

CERTS     ?= /etc/ssl/certs/ca-certificates.crt
PLATFORMS ?= linux/amd64,linux/arm64
IMAGES    ?= bin/images
images: build ## Build the container images, with hako itself, into the OCI layouts bin/images/executor and debug
	GO="$(GO)" VERSION="$(VERSION)" LDFLAGS="$(LDFLAGS)" CERTS="$(CERTS)" PLATFORMS="$(PLATFORMS)" images/build $(IMAGES)

release: images ## Push the images to REPOSITORY=registry/name, as VERSION, latest, VERSION-debug and debug
	images/release $(IMAGES) $(VERSION) $(REPOSITORY)
