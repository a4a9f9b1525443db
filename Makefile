# Shortcuts for people who work on llama2c. To use it, `pip install .` is enough. `make` lists the targets.
# Every target works in a fresh clone: it installs what it needs into .venv, and installs the package there again when a
# source has changed. PYTHON=python3.12 chooses the Python of .venv.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
MODEL =
ARGS =
C =
SOURCES = setup.py pyproject.toml $(wildcard llama2c/*.* llama2c/*/*.*)
# The tests of a file share what they prepare, so each file stays in one process. `-n 0` in ARGS is one process for all.
SIDE_BY_SIDE = -n auto --dist loadfile
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
LEVEL =
PYTHONS =
MINUTES = 10
TIME = 600

.PHONY: help run story test page clients cluster lint fuzz coverage sanitize races valgrind soak bench annotate asm wheel sdist aarch64 clean

help:
	@sed -n 's/^\([a-z0-9]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name use; do printf '%-9s %s\n' "$$name" "$$use"; done

run: $(VENV)/plain.stamp ## to see a story: make run ARGS="-i 'The little dog'"; MODEL=stories15M.bin for another model
	@$(BIN)/llama2c $(MODEL) $(ARGS)

story: $(VENV)/hub.stamp ## to compare a story with the C program, on stories42M: make story C="run=../llama2.c/run"
	@$(BIN)/python benchmarks/story.py $(addprefix --c ,$(C))

test: $(VENV)/test.stamp ## after every change: all tests, against the installed package; ARGS="-k chat" chooses some
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

cluster: $(VENV)/test.stamp ## after a change in batch/: its tests on a cluster of Ray that is started here; some minutes
	$(PIP) 'ray[data]>=2.44' pandas
	$(BIN)/pytest -m cluster tests/cluster $(ARGS)

page: $(VENV)/browser.stamp ## after a change in server/page.html: its tests, in headless Chromium (apt install chromium)
	$(BIN)/pytest tests/server/test_page.py $(ARGS)

# In an environment of their own: they bring many packages, and some want other versions of what the tests use.
CLIENTS = build/clients/venv

clients: ## after a change in the server: programs that others wrote ask it; ARGS chooses some as for test
	@$(MAKE) --no-print-directory VENV=$(CLIENTS) $(CLIENTS)/clients.stamp
	$(CLIENTS)/bin/pytest $(or $(ARGS),tests/server/clients)

lint: $(VENV)/lint.stamp ## before every commit: style and mistakes with ruff, types with mypy and pyright, and the stubs
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_typing.py

fuzz: $(VENV)/test.stamp ## after a change in a reader: two fuzzers, TIME=600 seconds each; failing inputs go to build/fuzz
	@if $(MAKE) -s $(VENV)/fuzz.stamp 2>/dev/null; then \
	    $(BIN)/python fuzz/fuzz_checkpoint.py -max_total_time=$(TIME) -verbosity=0 -print_final_stats=1 && \
	    $(BIN)/python fuzz/fuzz_tokenizer.py -max_total_time=$(TIME) -verbosity=0 -print_final_stats=1; \
	else echo "make fuzz: atheris cannot be installed for this Python on this machine: nothing was fuzzed"; fi

coverage: $(VENV)/coverage.stamp ## to see which lines and branches no test reaches: all tests, 15 minutes; ARGS as for test
	$(BIN)/python tests/measure_coverage.py $(ARGS)

# docs/reliability.md explains the settings of the sanitizers. Each has its own environment and build. The C++ library is
# preloaded too: if an extension loaded it later, its exceptions would bypass the sanitizer.
PRELOAD = LD_PRELOAD="`$(CC) -print-file-name=lib$(1).so` `$(CC) -print-file-name=libstdc++.so`" PYTHONMALLOC=malloc
SANITIZED = build/address,undefined
THREADED = build/thread
# Without test_fork: the thread sanitizer cannot follow threads that begin after a fork.
RACES = tests/test_kernels.py tests/test_same_bits.py tests/test_transformer.py tests/test_llama.py tests/engine \
    tests/test_processes.py::test_threads_of_python_come_and_go --deselect tests/engine/test_engine.py::test_fork

sanitize: ## after a change in C or Cython: all tests, or ARGS, with the address and undefined-behaviour sanitizers
	@LLAMA2C_SANITIZE=address,undefined $(MAKE) --no-print-directory VENV=$(SANITIZED)/venv $(SANITIZED)/venv/test.stamp
	LLAMA2C_SANITIZE=address,undefined $(call PRELOAD,asan) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 $(SANITIZED)/venv/bin/pytest -p no:cacheprovider --capture=sys $(SIDE_BY_SIDE) $(ARGS)

races: ## after a change in what threads share: the tests with threads, or ARGS, with the thread sanitizer
	@LLAMA2C_SANITIZE=thread $(MAKE) --no-print-directory VENV=$(THREADED)/venv $(THREADED)/venv/test.stamp
	LLAMA2C_SANITIZE=thread OPENBLAS_NUM_THREADS=1 $(call PRELOAD,tsan) TSAN_OPTIONS=halt_on_error=1:allocator_may_return_null=1 \
	    $(THREADED)/venv/bin/pytest -p no:cacheprovider --capture=sys $(or $(ARGS),$(RACES))

valgrind: $(VENV)/test.stamp ## before a release: kernels, files and texts in valgrind, which also finds unset memory; slow
	LLAMA2C_ISA=generic OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc valgrind --quiet --error-exitcode=99 --leak-check=no \
	    --suppressions=tests/sanitizers/valgrind.supp $(BIN)/python -m pytest -p no:cacheprovider --capture=sys \
	    $(or $(ARGS),-k 'not real_vocabularies' tests/test_kernels.py tests/formats/test_checkpoint.py tests/text/test_tokenizer.py)

# The C library keeps memory for each thread that there ever was at once; with few such parts, growth is not hidden by that.
soak: $(VENV)/test.stamp ## before a release: decodes for MINUTES=10, and checks whether memory grows or the output changes
	MALLOC_ARENA_MAX=2 $(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(MODEL)
	MALLOC_ARENA_MAX=2 $(BIN)/python benchmarks/soak_server.py --rounds $(MINUTES)

bench: $(VENV)/bench.stamp ## to compare with other programs: make bench C="run=../llama2.c/run runq=../llama2.c/runq"
	$(BIN)/python benchmarks/compare.py $(addprefix --c ,$(C)) --folder build/checkpoints -o benchmarks/results $(ARGS)

annotate: $(VENV)/plain.stamp ## when a .pyx is slow: HTML in which the lines that call into Python are yellow
	@mkdir -p build/annotate
	$(BIN)/cython -3 -a llama2c/_kernels.pyx -o build/annotate/_kernels.c
	$(BIN)/cython -3 -a llama2c/text/_bpe.pyx -o build/annotate/_bpe.c
	@ls build/annotate/*.html

# This reads the object file of the real build, so the flags are the real ones. A "vector" instruction works on 4 to 16
# numbers at once, a "scalar" one on a single number: a function with only scalar ones is not vectorised.
asm: $(VENV)/plain.stamp ## after a change in simd/: counts vector and scalar instructions in each function; LEVEL=avx2 chooses a level
	@level='$(LEVEL)'; test "$$level" || level=`$(BIN)/python -c 'import llama2c; print(llama2c.build_info()["isa"])'`; \
	object=`ls -t build/levels-*/llama2c/simd/$$level.o | head -n 1`; echo "$$object"; objdump -d $$object | awk ' \
	    /^[0-9a-f]+ <.*>:$$/ { name = $$2; gsub(/[<>:]|[.].*/, "", name); if (!(name in known)) names[++n] = name; known[name] } \
	    /\tvfn?m(add|sub)[0-9]+p[sd]|\tfml[as][.\t]/ { fused[name]++ } \
	    /\tvpdpbusd|\tvpmadd(ubsw|wd)|\tsdot|\tpmaddwd/ { dots[name]++ } \
	    /\tv?(add|sub|mul|div|max|min)p[sd]|\tf(add|sub|mul|div|max|min)(nm)?[ \t.]+v/ { vector[name]++ } \
	    /\tv?(add|sub|mul|div|max|min|fn?m(add|sub)[0-9]+)s[sd]|\tf(add|sub|mul|div|max|min|n?m(add|sub))(nm)?[ \t]+[sd]/ { scalar[name]++ } \
	    END { printf "%-18s %10s %10s %13s %7s\n", "function", "vector fma", "vector dot", "other vector", "scalar"; \
	          for (i = 1; i <= n; i++) { f = names[i]; \
	              printf "%-18s %10d %10d %13d %7d\n", f, fused[f], dots[f], vector[f], scalar[f] } }'

# docs/platforms.md says what these three found.
wheel: $(BIN)/cython ## before a release: a wheel for each Python from 3.10 to 3.13 (PYTHONS="..."), tested without a compiler; ARGS as for test
	$(BIN)/python release/wheels.py $(addprefix --python=,$(PYTHONS)) $(ARGS)

sdist: $(VENV)/test.stamp ## before a release: the source distribution, built in all the ways that users build it; 15 minutes
	$(BIN)/python release/sdist.py

aarch64: $(VENV)/test.stamp ## after a change in simd/: compiles for aarch64 and runs the tests of the kernels, or ARGS, in qemu
	$(BIN)/python release/aarch64.py $(ARGS)

clean: ## to start again: removes .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -f llama2c/*.so llama2c/text/*.so
	find llama2c tests fuzz benchmarks training -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The build requirements of pyproject.toml. With them in .venv, a build needs no temporary environment.
$(BIN)/cython:
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'

$(VENV)/test.stamp: EXTRA = [test]
$(VENV)/browser.stamp: EXTRA = [browser]
$(VENV)/clients.stamp: EXTRA = [clients]
$(VENV)/lint.stamp: EXTRA = [lint]
$(VENV)/bench.stamp: EXTRA = [bench]
$(VENV)/hub.stamp: EXTRA = [hub]
$(VENV)/fuzz.stamp: EXTRA = [fuzz]
$(VENV)/coverage.stamp: EXTRA = [coverage]

# Removes the .py files of an earlier build first. Otherwise a deleted module would still be installed.
$(VENV)/%.stamp: $(SOURCES) | $(BIN)/cython
	@for old in build/lib*; do if [ -d $$old ]; then find $$old -name '*.py' -delete; fi; done
	$(PIP) --no-build-isolation '.$(EXTRA)'
	@touch $@
