# Shortcuts for people who work on llama2c; to use it, `pip install .` is enough. `make` alone lists the targets.
# Every target works in a fresh clone: what it needs is put into .venv, and the package is installed there again
# whenever a source has changed. PYTHON=python3.12 picks the Python that .venv is made with.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
MODEL =
ARGS =
C =
SOURCES = setup.py pyproject.toml $(wildcard llama2c/*.* llama2c/*/*.*)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
LEVEL =
MINUTES = 10
TIME = 600

.PHONY: help run story test lint fuzz coverage sanitize races valgrind soak bench annotate asm clean

help:
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name use; do printf '%-9s %s\n' "$$name" "$$use"; done

run: $(VENV)/plain.stamp ## to see it tell a story: make run ARGS="-i 'The little dog'", or MODEL=stories15M.bin for another model
	@$(BIN)/llama2c $(MODEL) $(ARGS)

story: $(VENV)/hub.stamp ## to hear the same story from C: downloads stories42M; make story C="run=../llama2.c/run"
	@$(BIN)/python benchmarks/story.py $(addprefix --c ,$(C))

test: $(VENV)/test.stamp ## after every change: all tests, against the installed package; ARGS="-k chat" picks some
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/lint.stamp ## before every commit: ruff for style and slips, mypy for types
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: $(VENV)/test.stamp ## after a change in what reads files: two fuzzers, TIME=600 seconds each, what they find goes to build/fuzz
	@if $(MAKE) -s $(VENV)/fuzz.stamp 2>/dev/null; then \
	    $(BIN)/python fuzz/fuzz_checkpoint.py -max_total_time=$(TIME) -verbosity=0 -print_final_stats=1 && \
	    $(BIN)/python fuzz/fuzz_tokenizer.py -max_total_time=$(TIME) -verbosity=0 -print_final_stats=1; \
	else echo "make fuzz: atheris, which it needs, cannot be installed for this Python on this machine: nothing was fuzzed"; fi

coverage: $(VENV)/coverage.stamp ## to see which lines and branches no test takes: all tests, a quarter of an hour; ARGS as for test
	$(BIN)/python tests/measure_coverage.py $(ARGS)

# What the sanitizers are told, and why, is in docs/reliability.md. Each has an environment and a build of its own. The C++
# library is named too: one that comes later, with an extension, would throw past the sanitizer.
PRELOAD = LD_PRELOAD="`$(CC) -print-file-name=lib$(1).so` `$(CC) -print-file-name=libstdc++.so`" PYTHONMALLOC=malloc
SANITIZED = build/address,undefined
THREADED = build/thread
RACES = tests/test_kernels.py tests/test_same_bits.py tests/test_transformer.py tests/test_llama.py tests/test_processes.py::test_threads_of_python_come_and_go

sanitize: ## before a release, and after a change in C or Cython: all tests, or ARGS, with the address and UB sanitizers
	@LLAMA2C_SANITIZE=address,undefined $(MAKE) --no-print-directory VENV=$(SANITIZED)/venv $(SANITIZED)/venv/test.stamp
	LLAMA2C_SANITIZE=address,undefined $(call PRELOAD,asan) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=print_stacktrace=1 $(SANITIZED)/venv/bin/pytest -p no:cacheprovider --capture=sys $(ARGS)

races: ## after a change of what threads share: the tests with threads, or ARGS, with the thread sanitizer
	@LLAMA2C_SANITIZE=thread $(MAKE) --no-print-directory VENV=$(THREADED)/venv $(THREADED)/venv/test.stamp
	LLAMA2C_SANITIZE=thread OPENBLAS_NUM_THREADS=1 $(call PRELOAD,tsan) TSAN_OPTIONS=halt_on_error=1:allocator_may_return_null=1 \
	    $(THREADED)/venv/bin/pytest -p no:cacheprovider --capture=sys $(or $(ARGS),$(RACES))

valgrind: $(VENV)/test.stamp ## before a release: kernels, files and texts in valgrind, which also sees what was never set; slow
	LLAMA2C_ISA=generic OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc valgrind --quiet --error-exitcode=99 --leak-check=no \
	    --suppressions=tests/sanitizers/valgrind.supp $(BIN)/python -m pytest -p no:cacheprovider --capture=sys \
	    $(or $(ARGS),-k 'not real_vocabularies' tests/test_kernels.py tests/test_checkpoint.py tests/test_tokenizer.py)

soak: $(VENV)/test.stamp ## before a release: decode for MINUTES=10, and see whether memory grows or the output changes
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(MODEL)

bench: $(VENV)/bench.stamp ## to compare with others, figures and pictures: make bench C="run=../llama2.c/run runq=../llama2.c/runq"
	$(BIN)/python benchmarks/compare.py $(addprefix --c ,$(C)) --folder build/checkpoints -o benchmarks/results $(ARGS)

annotate: $(VENV)/plain.stamp ## when a .pyx is slow: HTML whose yellow lines are those that call into Python
	@mkdir -p build/annotate
	$(BIN)/cython -3 -a llama2c/_kernels.pyx -o build/annotate/_kernels.c
	$(BIN)/cython -3 -a llama2c/text/_bpe.pyx -o build/annotate/_bpe.c
	@ls build/annotate/*.html

# The object file is the one that setup.py made, so its flags are the real ones. "vector" instructions do 4 to 16 numbers at
# once, "scalar" ones a single number: a function with only those is not vectorised.
asm: $(VENV)/plain.stamp ## after a change in simd/: are the inner loops vectorised? arithmetic by function; LEVEL=avx2 picks
	@level='$(LEVEL)'; test "$$level" || level=`$(BIN)/python -c 'import llama2c; print(llama2c.build_info()["isa"])'`; \
	object=`ls -t build/temp*/llama2c/simd/$$level.o | head -n 1`; echo "$$object"; objdump -d $$object | awk ' \
	    /^[0-9a-f]+ <.*>:$$/ { name = $$2; gsub(/[<>:]|[.].*/, "", name); if (!(name in known)) names[++n] = name; known[name] } \
	    /\tvfn?m(add|sub)[0-9]+p[sd]|\tfml[as][.\t]/ { fused[name]++ } \
	    /\tvpdpbusd|\tvpmadd(ubsw|wd)|\tsdot|\tpmaddwd/ { dots[name]++ } \
	    /\tv?(add|sub|mul|div|max|min)p[sd]|\tf(add|sub|mul|div|max|min)(nm)?[ \t.]+v/ { vector[name]++ } \
	    /\tv?(add|sub|mul|div|max|min|fn?m(add|sub)[0-9]+)s[sd]|\tf(add|sub|mul|div|max|min|n?m(add|sub))(nm)?[ \t]+[sd]/ { scalar[name]++ } \
	    END { printf "%-18s %10s %10s %13s %7s\n", "function", "vector fma", "vector dot", "other vector", "scalar"; \
	          for (i = 1; i <= n; i++) { f = names[i]; \
	              printf "%-18s %10d %10d %13d %7d\n", f, fused[f], dots[f], vector[f], scalar[f] } }'

clean: ## to start afresh: removes .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -f llama2c/*.so llama2c/text/*.so
	find llama2c tests fuzz benchmarks training -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The build requirements of pyproject.toml: with them here, a build need not start from nothing in an environment of its own.
$(BIN)/cython:
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'

$(VENV)/test.stamp: EXTRA = [test]
$(VENV)/lint.stamp: EXTRA = [lint]
$(VENV)/bench.stamp: EXTRA = [bench]
$(VENV)/hub.stamp: EXTRA = [hub]
$(VENV)/fuzz.stamp: EXTRA = [fuzz]
$(VENV)/coverage.stamp: EXTRA = [coverage]

# The .py files that an earlier build left are removed first, or a module that is deleted would still be installed.
$(VENV)/%.stamp: $(SOURCES) | $(BIN)/cython
	@if [ -d build ]; then find build -path '*/llama2c/*.py' -delete; fi
	$(PIP) --no-build-isolation '.$(EXTRA)'
	@touch $@
