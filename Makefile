# `make` lists the targets. They need Rust, a C and C++ compiler, and Python 3 with pip; ONNX Runtime is fetched.

CARGO ?= cargo
CXXFLAGS ?= -O2
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

RELEASE := $(CARGO_TARGET_DIR)/release
DEMO := $(RELEASE)/examples/demo

# Where `make install` puts things, below DESTDIR if that is set.
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
VERSION := $(shell sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
MAJOR := $(firstword $(subst ., ,$(VERSION)))
SONAME := libcos.so.$(MAJOR)
# 0 installs no ONNX Runtime beside the library, for systems that have another one, such as a build for GPUs.
WITH_ONNXRUNTIME ?= 1

# Made when a build begins. What `make install` takes is built anew only if sources are younger than this file, so root,
# who may have no cargo, can install what a user has built.
BUILT := $(RELEASE)/.libcos-built
SOURCES := Cargo.toml Cargo.lock build.rs $(shell find src kernels -type f)
ONNXRUNTIME := $(CARGO_TARGET_DIR)/onnxruntime

.DEFAULT_GOAL := help
.PHONY: help build portable onnxruntime install export demo demo-page demo-program demo-triton test test-export \
    test-cpp test-go test-java test-triton \
    conformance lint format clippy bench bench-serve bench-sessions bench-neighbours bench-ways evaluate bench-cuda \
    header clean
# Cargo uses all cores by itself, and its targets would wait for each other.
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: ## build libcos.so
	@mkdir -p "$(RELEASE)" && touch "$(BUILT).begun"
	$(CARGO) build --release --locked
	@mv "$(BUILT).begun" "$(BUILT)"

$(BUILT): $(SOURCES)
	@command -v $(firstword $(CARGO)) >/dev/null || { \
	    echo "$(RELEASE)/libcos.so is missing or older than its sources, and there is no cargo:" \
	        "run \`make build\` before, as a user who has it" >&2; exit 1; }
	@$(MAKE) --no-print-directory build

# The C library that Zig links with is that of the version named, whatever the machine has.
portable: PORTABLE := $(shell uname -m)-unknown-linux-gnu
portable: ## build libcos.so for glibc 2.28, as old as ONNX Runtime takes: needs pip install ziglang cargo-zigbuild
	$(CARGO) zigbuild --release --locked --lib --target $(PORTABLE).2.28
	@echo "$(CARGO_TARGET_DIR)/$(PORTABLE)/release/libcos.so"

onnxruntime: ## fetch ONNX Runtime into the target folder, where libcos.so finds it
	scripts/fetch-onnxruntime "$(ONNXRUNTIME)"

install: $(BUILT) ## install the library and ONNX Runtime, for C and C++: PREFIX=, DESTDIR=, WITH_ONNXRUNTIME=0
	install -d "$(DESTDIR)$(INCLUDEDIR)" "$(DESTDIR)$(LIBDIR)/pkgconfig" "$(DESTDIR)$(LIBDIR)/cmake/cos"
	install -m 644 include/cos.h bindings/cpp/cos.hpp bindings/cpp/cos_best.hpp bindings/cpp/cos_driver.hpp \
	    bindings/cpp/cos_options.hpp bindings/cpp/cos_request.hpp bindings/cpp/cos_result.hpp \
	    bindings/cpp/cos_step.hpp "$(DESTDIR)$(INCLUDEDIR)"
	install -m 755 "$(RELEASE)/libcos.so" "$(DESTDIR)$(LIBDIR)/libcos.so.$(VERSION)"
	ln -sf libcos.so.$(VERSION) "$(DESTDIR)$(LIBDIR)/$(SONAME)"
	ln -sf $(SONAME) "$(DESTDIR)$(LIBDIR)/libcos.so"
	for file in pkgconfig/cos.pc cmake/cos/cosConfig.cmake cmake/cos/cosConfigVersion.cmake; do \
	    sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	        -e 's|@VERSION@|$(VERSION)|; s|@MAJOR@|$(MAJOR)|; s|@SONAME@|$(SONAME)|' \
	        -e "s|@INCLUDE_FROM_LIB@|$$(realpath -m --relative-to="$(LIBDIR)" "$(INCLUDEDIR)")|" \
	        packaging/$${file##*/}.in >"$(DESTDIR)$(LIBDIR)/$$file" || exit; \
	done
ifeq ($(WITH_ONNXRUNTIME),1)
	install -d "$(DESTDIR)$(LIBDIR)/onnxruntime"
	install -m 644 "$(ONNXRUNTIME)"/* "$(DESTDIR)$(LIBDIR)/onnxruntime"
endif
	@[ -n "$(DESTDIR)" ] || packaging/after-install "$(LIBDIR)"

ifeq ($(WITH_ONNXRUNTIME),1)
install: onnxruntime
endif

export: ## export a Hugging Face model: MODEL=FOLDER OUT=FOLDER, TOOL=, PRECISION=, DEVICE= (scripts/export --help)
	@scripts/export $(if $(TOOL),--tool "$(TOOL)") $(if $(PRECISION),--precision "$(PRECISION)") \
	    $(if $(DEVICE),--device "$(DEVICE)") "$(MODEL)" "$(OUT)"

# The fetch waits for the network while cargo compiles.
demo: ## watch models decode together, and compare the strategies
	@echo "demo, 1 of 2: compile CoS, and fetch ONNX Runtime meanwhile"
	@scripts/fetch-onnxruntime "$(ONNXRUNTIME)" & fetch=$$!; \
	$(MAKE) --no-print-directory demo-program; built=$$?; \
	kill -0 $$fetch 2>/dev/null && echo "waiting for ONNX Runtime"; \
	wait $$fetch || { echo "ONNX Runtime was not fetched; its error is above" >&2; exit 1; }; exit $$built
	@echo "demo, 2 of 2: decode"
	"$(DEMO)" models/demo

demo-program: build
	$(CXX) -std=c++17 -Wall -Wextra $(CXXFLAGS) -Iinclude bindings/cpp/examples/demo.cpp -o "$(DEMO)" \
	    -L"$(RELEASE)" -lcos '-Wl,-rpath,$$ORIGIN/..'

demo-page: onnxruntime build ## watch on a web page which model proposes each token: http://localhost:8080
	bindings/cpp/test program
	"$(CARGO_TARGET_DIR)/cpp/server" models/demo/three.json --page bindings/cpp/examples/page.html

demo-triton: onnxruntime build ## watch the real Triton serve the demo models to many clients at once
	bindings/triton/test demo

test-export: onnxruntime demo-program ## check the exports of a small model by both tools; fetches several GB once
	tests/export/test arguments fetch models

test: onnxruntime demo-program ## run all tests: Rust, C under sanitizers, and bindings whose languages are installed
	$(CARGO) test --release --locked
	tests/export/test arguments models
	$(MAKE) test-cpp test-go test-java test-triton

test-cpp: onnxruntime build ## check the C++ binding: vectors, safety, packages, server
	bindings/cpp/test
	tests/hosts/test cpp

test-go: onnxruntime build ## check the Go binding: vectors, safety, the race detector, server
	bindings/go/test
	tests/hosts/test go

test-java: onnxruntime build ## check the Java binding: vectors, safety, class loaders, server
	bindings/java/test
	tests/hosts/test java

test-triton: onnxruntime build ## check the Triton backend and the gateway on real servers, where these can be had
	bindings/triton/test
	bindings/triton/gateway/test
	bindings/triton/deploy/test

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

bench: onnxruntime ## compare strategies and peers in target/bench/index.html: MODELS=, QUICK=1, BENCH_ARGUMENTS=
	QUICK="$(QUICK)" scripts/bench-setup "$(CARGO_TARGET_DIR)/bench" "$(MODELS)"
	$(CARGO) bench --locked --bench bench -- --out "$(CARGO_TARGET_DIR)/bench" \
	    $(if $(MODELS),--models "$(MODELS)") $(if $(QUICK),--quick) $(BENCH_ARGUMENTS)

bench-sessions: onnxruntime ## measure many sessions at once: CONFIG=, TORCH=FOLDER,FOLDER for a peer, BENCH_ARGUMENTS=
	@[ -z "$(TORCH)" ] || scripts/bench-setup "$(CARGO_TARGET_DIR)/bench"
	$(CARGO) bench --locked --bench sessions -- $(CONFIG) $(if $(TORCH),--torch "$(TORCH)") $(BENCH_ARGUMENTS)

bench-neighbours: onnxruntime ## measure beside busy loops that want the same cores: CONFIG=, BENCH_ARGUMENTS=
	$(CARGO) bench --locked --bench neighbours -- $(CONFIG) $(BENCH_ARGUMENTS)

bench-serve: onnxruntime ## serve many clients (target/bench-serve): CONFIG=, MODELS=, QUICK=1, BENCH_ARGUMENTS=
	QUICK="$(QUICK)" scripts/bench-setup "$(CARGO_TARGET_DIR)/bench"
	$(CARGO) bench --locked --bench serve -- $(CONFIG) --out "$(CARGO_TARGET_DIR)/bench-serve" \
	    $(if $(MODELS),--models "$(MODELS)") $(if $(QUICK),--quick) $(BENCH_ARGUMENTS)

bench-ways: onnxruntime build ## compare servers and Triton with the library in-process: BENCH_ARGUMENTS=
	scripts/bench-ways $(BENCH_ARGUMENTS)

evaluate: onnxruntime ## measure what combinations do to the text, beside each of their models alone: CONFIGS=
	$(CARGO) bench --locked --bench bench -- --quality \
	    $(or $(CONFIGS),$(addprefix models/demo/,engine.json three.json contrastive.json contrastive-strong.json))

bench-cuda: ## measure on an NVIDIA GPU, and write docs/cuda.md: MODELS=, ORT_DYLIB_PATH=, BENCH_PYTHON=
	scripts/bench-cuda pack "$(CARGO_TARGET_DIR)/bench-cuda" "$(MODELS)"
	rm -rf "$(CARGO_TARGET_DIR)/bench-cuda-results"
	scripts/bench-cuda run "$(CARGO_TARGET_DIR)/bench-cuda" "$(CARGO_TARGET_DIR)/bench-cuda-results"
	scripts/bench-cuda report "$(CARGO_TARGET_DIR)/bench-cuda-results"

header: ## write include/cos.h anew from the sources, and the copy of the Go binding
	COS_UPDATE_HEADER=1 $(CARGO) test --release --locked --test interface the_header_is_fresh
	cp include/cos.h bindings/go/cos.h

clean: ## remove all that was built or fetched
	$(CARGO) clean
