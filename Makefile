# The commands a fresh machine needs are `make demo` and `make test`; both install what is missing (see tests/setup.sh).
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto
# Time that `make fuzz` gives each target, in seconds.
SECONDS_EACH ?= 20
# What `make cluster` runs; `make cluster SCENARIO=--list` shows what there is.
SCENARIO ?= crowd
NODES ?= 8

.PHONY: help build demo test unit e2e bench cluster bench-cluster fuzz lint deny install

help: ## Show what there is
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: ## Build towline and towlined into target/release
	$(CARGO) build --release --locked -p towline -p towlined

demo: ## From a hub to a pod that reads the model, beside plain containerd (MODEL=hf://org/name@rev for a real hub)
	@tests/setup.sh demo
	$(CARGO) build --release --locked -p towline -p towlined -p towline-tests --bins
	@target/release/towline-demo

test: ## Unit, property and end-to-end tests
	@tests/setup.sh test
	$(CARGO) build --release --locked --workspace --bins
	$(CARGO) test --release --locked --workspace

bench: ## Measure against plain containerd and print ratios
	@tests/setup.sh test
	$(CARGO) build --release --locked -p towline -p towlined -p towline-tests --bins
	@target/release/towline-bench

cluster: ## One scenario on nodes with shaped links, beside the physical bound (SCENARIO=crowd NODES=8; SCENARIO=--list)
	@tests/setup.sh cluster
	$(CARGO) build --release --locked -p towline -p towlined -p towline-tests --bins
	@target/release/towline-cluster $(SCENARIO) --nodes $(NODES)

bench-cluster: ## Everything that is promised of a cluster, median of 3, beside every node from the origin and owners only; the data plane first
	@tests/setup.sh cluster
	$(CARGO) build --release --locked -p towline -p towlined -p towline-tests --bins
	@target/release/towline-data-plane
	@target/release/towline-cluster --bench

fuzz: ## Every parser of foreign bytes under libFuzzer, SECONDS_EACH=20 each; needs a nightly compiler, installs cargo-fuzz if missing
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@tests/fuzz/run.sh $(SECONDS_EACH)

lint: ## Formatting, clippy, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(MAKE) deny

deny: ## Licences, sources and duplicates of dependencies; installs cargo-deny if missing
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	cargo deny --all-features check bans licenses sources

install: build ## Install towline and towlined into /usr/local/bin
	install -m 0755 target/release/towline target/release/towlined $(DESTDIR)/usr/local/bin/
