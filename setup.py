"""The compiled parts: the extensions, and the inner loops once for each instruction set. All else is in pyproject.toml."""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

# The order of every sum is fixed in the source: no level may fuse, reorder or approximate on its own. Ours come last.
EXACT = ["-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC"]

X86 = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mprefer-vector-width=512".split(),
    "avx2": "-mavx2 -mfma -mf16c".split(),
}
LEVELS = {"x86_64": X86, "amd64": X86, "aarch64": {"neon": []}, "arm64": {"neon": []}}
HEADERS = sorted(map(str, Path("llama2c/simd").glob("*.h")))
SOURCES = sorted(map(str, Path("llama2c/simd").glob("*.c")))

# LLAMA2C_SANITIZE names one of these: a build for `make sanitize` and `make races`, in a folder of its own. What a sanitizer
# finds ends the process. The thread sanitizer does not know GCC's OpenMP: there, a file of the tests takes its place.
CHECKED = ["-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
SANITIZERS = {
    "": [],
    "address,undefined": [*CHECKED, "-fsanitize=address,undefined,float-cast-overflow"],
    "thread": [*CHECKED, "-fsanitize=thread", "-DLLAMA2C_PLAIN_THREADS"],
}
SANITIZE = os.environ.get("LLAMA2C_SANITIZE", "")
checks = SANITIZERS[SANITIZE]
COMPILE = [*EXACT, *checks]
levels = {**LEVELS.get(platform.machine().lower(), {}), "generic": []}


def openmp_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags of OpenMP, or none where the compiler has no OpenMP: the build is then serial, and says so."""
    candidates = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
        for compile_flags, link_flags in candidates:
            command = [*compiler.compiler, *compile_flags, str(source), "-o", str(Path(folder, "probe")), *link_flags]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return compile_flags, link_flags
    print("llama2c: no OpenMP in this compiler: building for one thread", file=sys.stderr)
    return [], []


class BuildPy(build_py):
    """The modules, and beside them the commit they were taken from, for benchmarks to name."""

    def run(self) -> None:
        super().run()
        git = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, encoding="utf-8")
        if git.returncode == 0 and not self.editable_mode:
            Path(self.build_lib, "llama2c", "_commit.py").write_text(f'COMMIT = "{git.stdout.strip()}"\n')


OPENMP_COMPILE, OPENMP_LINK = openmp_flags()
REGIONS = []
if SANITIZE == "thread":
    OPENMP_LINK, REGIONS = ["-pthread"], ["tests/sanitizers/regions.c"]
# What Cython makes fits this Python and this NumPy alone: others that build from the same folder get a place of their own.
BUILD = f"build/{SANITIZE}" if SANITIZE else "build"
GENERATED = f"{BUILD}/cython-{sys.implementation.cache_tag}-numpy-{numpy.__version__}"
NUMPY = {"include_dirs": [numpy.get_include(), "llama2c"], "define_macros": [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]}

setup(
    cmdclass={"build_py": BuildPy},
    options={"build": {"build_base": BUILD}},
    libraries=[
        (f"llama2c_{name}", {"sources": [f"llama2c/simd/{name}.c"], "cflags": [*COMPILE, *flags], "obj_deps": {"": HEADERS}})
        for name, flags in {"dispatch": [], **levels}.items()
    ],
    ext_modules=cythonize(
        [
            Extension(
                "llama2c._kernels",
                ["llama2c/_kernels.pyx", *REGIONS],
                depends=[*HEADERS, *SOURCES, "llama2c/team.h"],
                extra_compile_args=[*COMPILE, *OPENMP_COMPILE],
                extra_link_args=[*OPENMP_LINK, *checks],
                **NUMPY,
            ),
            Extension("llama2c.text._bpe", ["llama2c/text/_bpe.pyx"], extra_compile_args=COMPILE, extra_link_args=checks),
        ],
        build_dir=GENERATED,
    ),
)
