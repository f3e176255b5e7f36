# `make` alone says what there is.

CARGO ?= cargo
CC ?= cc
# Where `make build` leaves its files, and the command among them, which the end-to-end tests run.
BUILD_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target)/$(CARGO_BUILD_TARGET)/release)
BLKMIRROR ?= $(BUILD_DIR)/blkmirror
MAKEFLAGS += --no-print-directory
HEADERS := $(wildcard include/*.h)

# Where `make install` puts things. DESTDIR goes before all of it and is not part of what is installed.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/blkmirror
PKGCONFIGDIR ?= $(LIBDIR)/pkgconfig
BASHCOMPDIR ?= $(DATADIR)/bash-completion/completions
ZSHCOMPDIR ?= $(DATADIR)/zsh/site-functions
FISHCOMPDIR ?= $(DATADIR)/fish/vendor_completions.d
PLACES := DESTDIR PREFIX BINDIR LIBDIR INCLUDEDIR MANDIR DOCDIR PKGCONFIGDIR BASHCOMPDIR ZSHCOMPDIR FISHCOMPDIR BUILD_DIR

.PHONY: help check tools format lint docs build install uninstall headers test loom fuzz soak bench demo man clean

help:
	@echo 'make check   all that must hold: format, lints, docs, header, models, every test (.ci/run calls it)'
	@echo 'make test    the tests alone'
	@echo 'make loom    models of what threads share without locks, every interleaving'
	@echo 'make fuzz    structures and sequences of calls at random, through C, for FUZZ_SECONDS=60'
	@echo 'make soak    the long tests too, more seeds of every simulated run, in release mode, and then'
	@echo '             new seeds of the simulator of drives and jobs for SOAK_SECONDS=600 or as long as you say'
	@echo 'make bench   the bitmap, the tracker, the comparison with fio, QEMU and dd, live mirroring, a queue'
	@echo '             (takes a while; best on an idle machine)'
	@echo 'make demo    copy scratch disks, mirror them under load, switch over, verify, and show how fast it was'
	@echo 'make man     show the manual pages of the command and of the C library'
	@echo 'make tools   install what the tests need and this machine lacks (root, apt)'
	@echo 'make install   put the command, the C library, its headers and the manual below PREFIX=/usr/local; builds what'
	@echo '             is not built. DESTDIR, BINDIR, LIBDIR, INCLUDEDIR, DATADIR and so on as usual'
	@echo 'make uninstall take that away again: PREFIX and DESTDIR as they were then'
	@echo 'make clean   remove what was built'

# One after the other also under `make -j`: cargo uses all cores by itself, and tests measure time.
check:
	$(MAKE) tools
	$(MAKE) format
	$(MAKE) lint
	$(MAKE) docs
	$(MAKE) build
	$(MAKE) headers
	$(MAKE) loom
	$(MAKE) test
	$(MAKE) fuzz

tools:
	.ci/tools

format:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p blkmirror-core --features sim -- -D warnings

# Two calls, because the command and the C library are both called blkmirror.
docs:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --exclude blkmirror --no-deps --document-private-items
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked -p blkmirror --bins --no-deps --document-private-items

# The command that users run, which the end-to-end tests run too, and the C library. Both at once: cargo chooses features of what they
# share for all that it builds in one call.
build:
	$(CARGO) build --locked --release -p blkmirror -p blkmirror-ffi

# Root may have no cargo (`sudo make install`): then what is built is installed.
install:
	@if command -v $(CARGO) >/dev/null || ! test -e '$(BUILD_DIR)/libblkmirror.a'; then $(MAKE) build; fi
	@$(foreach place,$(PLACES),$(place)='$($(place))') packaging/install install

uninstall:
	@$(foreach place,$(PLACES),$(place)='$($(place))') packaging/install uninstall

# The header must stand on its own, for C and for C++.
headers:
ifneq ($(HEADERS),)
	for header in $(HEADERS); do \
		$(CC) -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c $$header || exit 1; \
		if command -v $(CXX) >/dev/null; then \
			$(CXX) -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ $$header || exit 1; \
		fi; \
	done
endif

# Its own target directory, because the flag changes every crate.
loom:
	RUSTFLAGS='--cfg loom' $(CARGO) test --locked -p blkmirror-core --release --test 'loom_*' --target-dir target/loom

test: build
	BLKMIRROR='$(BLKMIRROR)' $(CARGO) test --locked --workspace

# How long the C functions are called at random.
FUZZ_SECONDS ?= 60

fuzz:
	fuzz/run $(FUZZ_SECONDS)

# How long `make soak` runs new seeds of the simulator.
SOAK_SECONDS ?= 600

soak: build
	BLKMIRROR='$(BLKMIRROR)' BLKMIRROR_SEEDS=$(or $(BLKMIRROR_SEEDS),1000) \
		$(CARGO) test --locked --release --workspace -- --include-ignored --skip simulator::tests::soak
	BLKMIRROR_SOAK_SECONDS=$(SOAK_SECONDS) \
		$(CARGO) test --locked --release -p blkmirror-core --lib -- --include-ignored --nocapture simulator::tests::soak

bench: build
	$(CARGO) bench --locked --bench bitmap
	$(CARGO) bench --locked --bench tracker
	$(CARGO) bench --locked --bench compare
	$(CARGO) bench --locked --bench live
	$(CARGO) bench --locked --bench queue

demo:
	$(CARGO) run --locked --release -p blkmirror -- demo

man:
	man -l docs/man/blkmirror.1 docs/man/libblkmirror.3

clean:
	$(CARGO) clean
