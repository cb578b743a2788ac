# `make` lists the targets. They need Rust, a C and C++ compiler, and Python 3 with pip; ONNX Runtime is fetched.

CARGO ?= cargo
CXXFLAGS ?= -O2
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

RELEASE := $(CARGO_TARGET_DIR)/release
DEMO := $(RELEASE)/examples/demo
MODELS := models/demo

.DEFAULT_GOAL := help
.PHONY: help build onnxruntime demo test conformance lint format clippy bench header clean
# Cargo uses all cores by itself, and its targets would wait for each other.
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: ## build libcos.so
	$(CARGO) build --release --locked

onnxruntime: ## fetch ONNX Runtime into the target folder, where libcos.so finds it
	scripts/fetch-onnxruntime "$(CARGO_TARGET_DIR)/onnxruntime"

demo: onnxruntime build ## watch models decode together, and compare the strategies
	$(CXX) -std=c++17 -Wall -Wextra $(CXXFLAGS) -Iinclude bindings/cpp/examples/demo.cpp -o "$(DEMO)" \
	    -L"$(RELEASE)" -lcos '-Wl,-rpath,$$ORIGIN/..'
	"$(DEMO)" $(MODELS)

test: onnxruntime lint ## run all checks: unit, integration, C under sanitizers
	$(CARGO) test --release --locked

conformance: onnxruntime ## prove the distributions at length, and write target/conformance/index.html
	$(CARGO) run --release --locked --example conformance -- --out "$(CARGO_TARGET_DIR)/conformance"

lint: format clippy ## check the formatting and clippy's lints, where they are installed

format:
	@if $(CARGO) fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --check; \
	else echo "formatting: skipped, because rustfmt is not installed (rustup component add rustfmt)"; fi

clippy:
	@if $(CARGO) clippy --version >/dev/null 2>&1; then set -x; \
	    $(CARGO) clippy --release --locked --all-targets -- -D warnings; \
	else echo "clippy: skipped, because it is not installed (rustup component add clippy)"; fi

bench: onnxruntime ## compare the strategies at length
	$(CARGO) bench --locked --bench strategies -- $(MODELS)/engine.json $(MODELS)/prompts/gsm8k.jsonl
	$(CARGO) bench --locked --bench strategies -- $(MODELS)/three.json $(MODELS)/prompts/gsm8k.jsonl
	$(CARGO) bench --locked --bench strategies -- $(MODELS)/contrastive.json $(MODELS)/prompts/gsm8k.jsonl --temperature 0

header: ## write include/cos.h anew from the sources
	COS_UPDATE_HEADER=1 $(CARGO) test --release --locked --test abi the_header_is_fresh

clean: ## remove all that was built or fetched
	$(CARGO) clean
