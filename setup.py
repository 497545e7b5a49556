"""Builds catapult_ext._C with CMake; everything else about the package is in pyproject.toml."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeExtension(Extension):
    """An extension whose sources are listed in CMakeLists.txt."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configure, build and install into the place setuptools expects.

    Options: CMAKE_ARGS, CATAPULT_CUDA=AUTO|ON|OFF, CATAPULT_CUDA_ARCHITECTURES=found|all|LIST,
    CATAPULT_WERROR=ON, CMAKE_BUILD_PARALLEL_LEVEL.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build one CMakeExtension."""
        import pybind11

        _require_a_compiler()
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        version = self.distribution.get_version()
        configure = [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            # pip's build environment moves between installs, the build folder stays.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DCATAPULT_VERSION={version}",
        ]
        for option in (
            "CATAPULT_CUDA",
            "CATAPULT_CUDA_ARCHITECTURES",
            "CATAPULT_WERROR",
            "CATAPULT_SANITIZE",
        ):
            if option in os.environ:
                configure.append(f"-D{option}={os.environ[option]}")
        configure += os.environ.get("CMAKE_ARGS", "").split()
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "-j", jobs], check=True)
        subprocess.run(["cmake", "--install", str(build)], check=True)


def _require_a_compiler() -> None:
    """End with one line that says what to install, instead of with CMake's two pages."""
    if sys.platform == "win32":
        sys.exit("catapult_ext: Windows is not supported; install it in WSL (wsl --install)")
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if not any(shutil.which(name) for name in named or ("c++", "g++", "clang++")):
        what = f"the compiler CXX={named[0]} is not there" if named else "needs a C++17 compiler"
        sys.exit(
            f"catapult_ext: {what}; Debian or Ubuntu: apt-get install g++; Fedora: dnf install "
            "gcc-c++; macOS: xcode-select --install"
        )


setup(ext_modules=[CMakeExtension("catapult_ext._C")], cmdclass={"build_ext": CMakeBuild})
