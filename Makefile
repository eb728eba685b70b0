# The commands of this repository. `make` alone lists them.
#
# Every target sets up what it needs: Debian packages through scripts/setup
# (root, or a user with sudo; anyone else is shown the apt-get line), Rust
# crates through cargo. Nothing is installed outside Debian's packages and
# this clone.

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-kernel build man demo test test-long check bench bench-record clean clean-images

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## install the Debian packages that are missing
	@scripts/setup run

setup-test:
	@scripts/setup test

setup-kernel:
	@scripts/setup kernel

build: setup ## build banger and bangerd into target/release
	$(CARGO) build --locked --release --package banger-cli --package banger-daemon --package banger-helper

man: build ## write the man pages into target/man
	@mkdir -p target/man
	@target/release/banger internal man target/man
	@echo 'man -l target/man/banger.1'

demo: build ## boot a guest and run a sample repository's `make test` in it
	@scripts/demo target/release/banger

test: setup-test ## run every test that this machine can run (under 45 minutes on 2 cores)
	@$(CARGO) xtask test

test-long: setup-kernel ## the tests that are too long for every change
	@$(CARGO) xtask test --long

check: setup-test ## format, lints, documentation and layout rules, without running tests
	@$(CARGO) xtask check

bench: setup-test build ## measure the numbers of docs/benchmarks.md
	@$(CARGO) xtask bench all

bench-record: setup-test build ## measure and write docs/benchmarks.md
	@$(CARGO) xtask bench all --record

clean: ## remove what cargo built
	$(CARGO) clean

clean-images: ## remove the images that the tests keep between runs
	rm -rf -- "$${BANGER_BUILD_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/banger-build}"
