# Everything here works on a clean clone with Go, Rust, Python and make. `make` alone says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:  # one cargo build at a time

CACHE := $(or $(WEIR_CACHE),$(HOME)/.cache/weir)
DENY_VERSION := 0.20.2
DENY_ROOT := $(CACHE)/cargo-deny-$(DENY_VERSION)

# Prefix of a recipe line that needs the Kubernetes binaries or the emulator's Python.
PREPARED := prepared=$$(python3 tests/sandbox/prepare.py --print-env) && eval "$$prepared" &&

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# Where `make image` leaves images: in the local engine, unless a release says otherwise.
OUTPUT ?= type=docker

# Extra arguments for pytest or the bench: make e2e ARGS="-k drift -x"
ARGS ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: prepare build ## Run the tutorial on a real control plane and an emulated AWS
	@$(PREPARED) "$$WEIR_PYTHON" tests/demo.py

.PHONY: test
test: prepare format clippy unit emulator e2e deny ## Run everything that decides whether a change is good

.PHONY: build
build: ## Build target/debug/weir
	cargo build --locked

.PHONY: lint
lint: format clippy deny ## Check formatting, lints, licences and sources of dependencies

.PHONY: unit
unit: ## Run the Rust tests
	cargo test --locked

.PHONY: e2e
e2e: prepare build ## Run weir against a real control plane and an emulated AWS; ARGS="-k name" picks
	# Bounds on time meet a busy machine now and then. What fails is run once more, in sight; what fails twice, fails.
	$(PREPARED) { "$$WEIR_PYTHON" -m pytest tests $(ARGS) || \
		{ echo "e2e: once more what failed"; "$$WEIR_PYTHON" -m pytest tests --last-failed --last-failed-no-failures none $(ARGS); }; }

.PHONY: emulator
emulator: prepare ## Test the AWS emulator's plugin itself
	$(PREPARED) "$$WEIR_PYTHON" -m pytest localstack/tests $(ARGS)

.PHONY: iam
iam: ## Write the policies and the table of permissions from iam/permissions.py
	python3 iam/permissions.py

.PHONY: bench
bench: prepare ## Measure AWS calls, seconds and memory at 100 Services (minutes); ARGS="--services 40" picks another size
	cargo build --release --locked
	$(PREPARED) "$$WEIR_PYTHON" benches/control_plane.py $(ARGS)

.PHONY: bench-data
bench-data: prepare ## Measure forwarding beside kube-proxy (as root, with wrk; half an hour)
	cargo build --release --locked
	$(PREPARED) "$$WEIR_PYTHON" benches/data_plane.py $(ARGS)

.PHONY: bench-rules
bench-rules: prepare ## Measure loading and changing rules beside kube-proxy (as root; half an hour)
	cargo build --release --locked
	$(PREPARED) "$$WEIR_PYTHON" benches/rules.py $(ARGS)

.PHONY: compare-lbc
compare-lbc: prepare build ## Compare with the AWS Load Balancer Controller (ten minutes, no part of `test`); LBC=its program
	$(PREPARED) "$$WEIR_PYTHON" tests/compare_lbc.py --lbc "$(LBC)" $(ARGS)

.PHONY: image
image: ## Build both images with Docker; a release: REGISTRY=host/path PLATFORMS=linux/amd64,linux/arm64 OUTPUT=type=registry
	for target in controller node; do \
		name=$${target/#controller/weir}; \
		docker buildx build --target "$$target" --tag "$(REGISTRY:%=%/)$${name/#node/weir-node}:$(VERSION)" \
			$(PLATFORMS:%=--platform=%) --build-arg SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" \
			--output "$(OUTPUT),rewrite-timestamp=true" .; \
	done

.PHONY: sbom
sbom: ## Write what the binary is made of to target/weir.cdx.json (CycloneDX)
	cargo fetch --locked
	mkdir -p target
	python3 .ci/sbom.py > target/weir.cdx.json

.PHONY: prepare
prepare: ## Build or find the Kubernetes binaries and the emulator (6 minutes once; as root it installs a missing C compiler)
	@python3 tests/sandbox/prepare.py

.PHONY: format
format: ## Check the formatting
	cargo fmt --check

.PHONY: clippy
clippy: ## Run the linter; a warning is an error
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: deny
deny: ## Check dependencies with cargo-deny, which is built first if it is missing (minutes, once)
	@cargo deny --version >/dev/null 2>&1 || [ -x "$(DENY_ROOT)/bin/cargo-deny" ] || \
		env -u CARGO_TARGET_DIR cargo install --locked --root "$(DENY_ROOT)" cargo-deny@$(DENY_VERSION)
	cargo fetch --locked
	PATH="$(DENY_ROOT)/bin:$$PATH" cargo deny --offline check bans licenses sources

.PHONY: clean
clean: ## Remove build output; the cache, ~/.cache/weir or $WEIR_CACHE, stays
	cargo clean
	find tests localstack -name __pycache__ -prune -exec rm -rf {} +
	rm -rf .pytest_cache tests/.pytest_cache localstack/.pytest_cache
