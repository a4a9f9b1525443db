"""The compiled parts: the extensions, and the inner loops once for each instruction set. All else is in pyproject.toml."""

import os
import platform
import re
import runpy
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# The order of every sum is fixed in the source: no level may fuse, reorder or approximate on its own. These come after CFLAGS,
# when compiling and when linking: there, -Ofast would add code that flushes subnormal numbers in the whole process.
STRICT = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations"]
EXACT = [*STRICT, "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC"]
# With -g, which most Pythons have in their CFLAGS, GCC spends half of its time on where each variable is at each instruction.
# The instructions are the same without.
QUICK = ["-fno-var-tracking-assignments"]

# The instruction sets, with the flags of each. The generic level and all other code get PLAIN: CFLAGS=-march=native may bring a
# fused multiply-add, and with one the generic level would give other bits.
X86 = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mprefer-vector-width=512".split(),
    "avx2": "-mno-avx512f -mavx2 -mfma -mf16c".split(),
}
LEVELS = {"x86_64": X86, "amd64": X86, "aarch64": {"neon": []}, "arm64": {"neon": []}}
# The machine to build for. The variable is Python's own, for builds on another machine: "linux-aarch64", "macosx-11.0-arm64".
MACHINE = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).rpartition("-")[2].lower()
if sys.platform == "darwin":  # python.org's Python is for two machines, and would compile each level for both
    os.environ.setdefault("ARCHFLAGS", f"-arch {MACHINE}")
PLAIN = ["-mno-avx"] if MACHINE in ("x86_64", "amd64") else []
levels = {**LEVELS.get(MACHINE, {}), "generic": PLAIN}
HEADERS = sorted(map(str, Path("llama2c/simd").glob("*.h")))
SOURCES = sorted(map(str, Path("llama2c/simd").glob("*.c")))


# LLAMA2C_SANITIZE names one of these: a build for `make sanitize` and `make races`, in a folder of its own. What a sanitizer
# finds ends the process. The thread sanitizer does not know GCC's OpenMP: there, a file of the tests takes its place.
# Most Pythons have -fwrapv in their CFLAGS: with it, no overflow would be found, and GCC would take four times as long.
CHECKED = ["-g", "-O1", "-fstrict-overflow", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
SANITIZERS = {
    "": [],
    "address,undefined": [*CHECKED, "-fsanitize=address,undefined,float-cast-overflow"],
    "thread": [*CHECKED, "-fsanitize=thread", "-DLLAMA2C_PLAIN_THREADS"],
}
SANITIZE = os.environ.get("LLAMA2C_SANITIZE", "")
CHECKS = SANITIZERS[SANITIZE]
COMPILE = [*EXACT, *QUICK, *CHECKS]
LINK = [*STRICT, *CHECKS]

# Flags to compile and to link with OpenMP, as GCC and Apple's compiler have them.
OPENMP = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
REGIONS = []
if SANITIZE == "thread":
    OPENMP, REGIONS = [(["-fopenmp"], ["-pthread"])], ["tests/sanitizers/regions.c"]


def compile_error(command: list[str], code: str, *link_flags: str) -> str | None:
    """Compile and link a small program. -> None if that works, else the compiler's first line with an error."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(code)
        try:
            done = subprocess.run([*command, str(source), "-o", str(Path(folder, "probe")), *link_flags], capture_output=True)
        except OSError as error:
            return error.strerror
    lines = done.stderr.decode(errors="replace").splitlines()
    return None if done.returncode == 0 else next((line for line in lines if "error" in line), f"exit code {done.returncode}")


def check_compiler(command: list[str]) -> None:
    """End with one line if there is no C compiler that works, or if Python's headers are missing."""
    include = f"-I{sysconfig.get_path('include')}"
    programs = {"int main(void) { return 0; }\n": [], "#include <Python.h>\nint main(void) { return 0; }\n": [include]}
    for code, flags in programs.items():
        problem = compile_error([*command, *flags], code)
        if problem is not None:
            sys.exit(
                f"llama2c: cannot compile C with {command[0]!r}: {problem}. Building llama2c needs a C compiler and the "
                "headers of Python (Debian, Ubuntu: apt install gcc python3-dev). The variable CC names another compiler."
            )


def openmp_flags(command: list[str]) -> tuple[list[str], list[str]]:
    """Compile and link flags of OpenMP, or none where the compiler has no OpenMP: the build is then serial, and says so."""
    for compile_flags, link_flags in OPENMP:
        code = "#include <omp.h>\nint main(void) { return sizeof(omp_lock_t) < 1; }\n"
        if compile_error([*command, *compile_flags], code, *link_flags) is None:
            return compile_flags, link_flags
    print("llama2c: this compiler has no OpenMP: building for one thread", file=sys.stderr)
    return [], []


class BuildClib(build_clib):
    """The levels. This command runs before build_ext, so a missing compiler is noticed here."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, object]]]) -> None:
        check_compiler(self.compiler.compiler)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each is one file, which may take a minute
            list(pool.map(super().build_libraries, ([library] for library in libraries)))


class BuildExt(build_ext):
    """The extensions, with the flags of OpenMP that this compiler takes."""

    def build_extensions(self) -> None:
        check_compiler(self.compiler.compiler)
        compile_flags, link_flags = openmp_flags(self.compiler.compiler)
        for extension in self.extensions:
            if extension.name == "llama2c._kernels":
                extension.extra_compile_args += compile_flags
                extension.extra_link_args += link_flags
        super().build_extensions()


COMMIT = Path(".commit")  # only in a source distribution: the commit it was made from


def own_commit() -> str | None:
    """The commit of this folder, from git or as the source distribution says it. None if neither knows."""
    return commit_in_git() or (COMMIT.read_text().strip() if COMMIT.is_file() else None)


def commit_in_git() -> str | None:
    """None without git, and if this folder is not the top of a checkout but inside another one."""
    here = Path(__file__).resolve().parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook of git sets some
    answers = []
    for arguments in (["rev-parse", "--show-toplevel"], ["describe", "--always", "--dirty", "--exclude=*"]):
        try:
            git = subprocess.run(["git", *arguments], cwd=here, env=environment, capture_output=True)
        except OSError:
            return None
        if git.returncode != 0:
            return None
        answers.append(os.fsdecode(git.stdout).removesuffix("\n"))
    top, commit = answers
    return commit if Path(top).resolve() == here else None


class BuildPy(build_py):
    """The modules, and beside them the commit they were taken from, for benchmarks to name, and what was compiled."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        digest = runpy.run_path("llama2c/checkout.py")["digest_of_compiled"]("llama2c")
        file = Path(self.build_lib, "llama2c", "_commit.py")
        file.write_text(f"COMMIT = {own_commit()!r}\nSOURCES = {digest!r}\n")


def readme_for_pypi() -> str:
    """README.md with absolute links: PyPI shows the page alone, and has none of the files beside it."""
    text = Path("README.md").read_text(encoding="utf-8")
    (repository,) = re.findall(r'^Repository = "(.*)"$', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    text = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{repository}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{repository}/blob/main/", text)


class Sdist(sdist):
    """The source distribution, with the commit it was made from."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        commit = own_commit()
        if commit is not None:
            Path(base_dir, COMMIT).write_text(f"{commit}\n")


# What Cython makes fits only this Python and this NumPy: others that build from the same folder get a place of their own.
BUILD = f"build/{SANITIZE}" if SANITIZE else "build"
GENERATED = f"{BUILD}/cython-{sys.implementation.cache_tag}-numpy-{numpy.__version__}"
LEVEL_BUILD = f"{BUILD}/levels-{MACHINE}"  # these know nothing of Python: they are compiled once for all that build here
NUMPY = {"include_dirs": [numpy.get_include(), "llama2c"], "define_macros": [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]}

setup(
    long_description=readme_for_pypi(),
    long_description_content_type="text/markdown",
    cmdclass={"sdist": Sdist, "build_py": BuildPy, "build_clib": BuildClib, "build_ext": BuildExt},
    options={
        "build": {"build_base": BUILD},
        "build_clib": {"build_temp": LEVEL_BUILD, "build_clib": LEVEL_BUILD},
        "build_ext": {"parallel": True},
    },
    libraries=[
        (f"llama2c_{name}", {"sources": [f"llama2c/simd/{name}.c"], "cflags": [*COMPILE, *flags], "obj_deps": {"": HEADERS}})
        for name, flags in {"dispatch": PLAIN, **levels}.items()
    ],
    ext_modules=cythonize(
        [
            Extension(
                "llama2c._kernels",
                ["llama2c/_kernels.pyx", *REGIONS],
                depends=[*HEADERS, *SOURCES, "llama2c/team.h", "llama2c/system.h"],
                extra_compile_args=[*COMPILE, *PLAIN],
                extra_link_args=[*LINK],
                **NUMPY,
            ),
            Extension(
                "llama2c.text._bpe", ["llama2c/text/_bpe.pyx"], extra_compile_args=[*COMPILE, *PLAIN], extra_link_args=[*LINK]
            ),
        ],
        build_dir=GENERATED,
    ),
)
