"""Builds the C++ extension against the torch that is installed here; everything else is in pyproject.toml.

torch is found, not imported, and not a build requirement: an isolated build would download a second one, of
another version. Where there is no torch, or the compiler fails, the package is built without the extension and
runs through its eager backend; `addnorm doctor` says so.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
COMMON = ["-std=c++20", "-O2", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
ISA_FLAGS = {
    "isa_generic.cpp": [],
    "isa_avx2.cpp": AVX2,
    "isa_avx512.cpp": AVX512,
    "isa_avx512_bf16.cpp": [*AVX512, "-mavx512bf16"],
}
X86 = platform.machine().lower() in ("x86_64", "amd64")


def find_torch() -> Path | None:
    """The folder of the torch to build for: importable here, or installed in the environment that pip builds for."""
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    spec = importlib.util.find_spec("torch") or PathFinder.find_spec("torch", site)
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_version(folder: Path) -> tuple[str, str]:
    found = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
    if not found:
        raise RuntimeError(f"{folder}/version.py states no version")
    return found[1], found[2]


class BuildExtension(build_ext):
    """Compiles each source with its own flags, several at a time."""

    def build_extension(self, ext: Extension) -> None:
        def compile_one(source: str) -> list[str]:
            flags = [*COMMON, *ISA_FLAGS.get(Path(source).name, [])]
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                include_dirs=ext.include_dirs,
                extra_postargs=[*flags, *ext.extra_compile_args],
                depends=ext.depends,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [o for compiled in pool.map(compile_one, ext.sources) for o in compiled]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=ext.libraries,
            library_dirs=ext.library_dirs,
            extra_postargs=ext.extra_link_args,
            target_lang="c++",
        )


def extensions() -> list[Extension]:
    folder = find_torch()
    if folder is None:
        print("addnorm: no torch found, building without the C++ extension", file=sys.stderr)
        return []
    name = "_cpu_torch_" + "_".join(torch_version(folder))
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    if not X86:
        sources = [s for s in sources if not Path(s).name.startswith("isa_") or s.endswith("isa_generic.cpp")]
    return [
        Extension(
            f"addnorm.{name}",
            sources=sources,
            depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
            include_dirs=["csrc", str(folder / "include")],
            define_macros=[("ADDNORM_MODULE", name)],
            library_dirs=[str(folder / "lib")],
            libraries=["torch_python", "torch_cpu", "torch", "c10"],
            extra_compile_args=openmp,
            extra_link_args=[*openmp, "-Wl,--no-as-needed"] if sys.platform == "linux" else [],
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
