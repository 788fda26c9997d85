"""Build hook: compiles the extension with one call of the C++ compiler. Needs no CMake, torch, CUDA or jaxlib."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Compiles `native/*.cc` into `t2j_core/_native`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this Python and platform."""
        import pybind11

        root = Path(self.root)
        output = root / "src" / "t2j_core" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        sources = sorted((root / "native").glob("*.cc"))
        include = [sysconfig.get_path("include"), pybind11.get_include()]
        command = self._command(root, include, list(map(str, sources)), output)
        self.app.display_info(" ".join(command))
        try:
            with tempfile.TemporaryDirectory() as scratch:  # Microsoft's compiler writes its object files there
                subprocess.run(command, check=True, cwd=scratch)
        except FileNotFoundError:
            raise SystemExit(
                f"t2j-core needs a C++17 compiler to build from source; `{command[0]}` was not found.\n"
                "Install one (Debian: `apt-get install g++`; Windows: Visual Studio's Build Tools, whose developer "
                "prompt finds it), or set CXX, or install a wheel."
            ) from None
        build_data["infer_tag"] = True
        build_data["pure_python"] = False
        build_data["artifacts"].append(f"src/t2j_core/{output.name}")

    def _command(self, root: Path, include: list[str], sources: list[str], output: Path) -> list[str]:
        """The command that calls the compiler of this platform."""
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        headers = [f"-I{path}" for path in include]  # all three compilers take `-I`
        if sys.platform == "win32":
            flags = [os.environ.get("CXX", "cl"), "/nologo", "/std:c++17", "/O2", "/DNDEBUG", "/EHsc", "/LD"]
            link = ["/link", f"/LIBPATH:{Path(sys.base_prefix) / 'libs'}", f"/OUT:{output}"]
            return [*flags, *headers, *extra, *sources, *link]
        flags = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O2", "-DNDEBUG", "-fPIC", "-shared"]
        flags += ["-fvisibility=hidden", "-Wno-invalid-offsetof"]
        # The binary names no folder of this machine: the same sources and compiler make the same wheel anywhere.
        flags += [f"-ffile-prefix-map={path}=." for path in (root, *include)]
        if sys.platform == "darwin":  # the running Python has the undefined symbols; ARCHFLAGS names the processor
            flags += ["-undefined", "dynamic_lookup", *shlex.split(os.environ.get("ARCHFLAGS", ""))]
        else:  # the process may have loaded another libstdc++, such as conda's
            flags += ["-static-libstdc++", "-static-libgcc"]
        return [*flags, *headers, *extra, *sources, "-o", str(output)]

    def clean(self, versions: list[str]) -> None:
        """Remove compiled extensions."""
        for path in (Path(self.root) / "src" / "t2j_core").glob("_native.*"):
            if path.suffix != ".pyi":
                path.unlink()
