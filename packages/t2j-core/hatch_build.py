"""Build hook: the C++ compiler builds the extension, on all processors. It needs no CMake, torch, CUDA or jaxlib."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Compiles `native/*.cc` into `t2j_core/_native`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the extension, and mark the wheel as specific to this Python and platform."""
        import pybind11

        root = Path(self.root)
        output = root / "src" / "t2j_core" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
        sources = sorted((root / "native").glob("*.cc"))
        include = [sysconfig.get_path("include"), pybind11.get_include()]
        compiler, link = self._commands(root, include, output)
        self.app.display_info(" ".join(compiler))
        try:
            with tempfile.TemporaryDirectory() as scratch:
                self._build(compiler, link, list(map(str, sources)), scratch)
        except FileNotFoundError:
            raise SystemExit(
                f"t2j-core needs a C++17 compiler to build from source; `{compiler[0]}` was not found.\n"
                "Install one (Debian: `apt-get install g++`; Windows: Visual Studio's Build Tools, whose developer "
                "prompt finds it), or set CXX, or install a wheel."
            ) from None
        build_data["infer_tag"] = True
        build_data["pure_python"] = False
        build_data["artifacts"].append(f"src/t2j_core/{output.name}")

    def _build(self, compiler: list[str], link: list[str], sources: list[str], scratch: str) -> None:
        """Compile each source to an object file in a scratch folder, and link them."""
        if sys.platform == "win32":  # Microsoft's compiler spreads the sources over the processors itself
            subprocess.run([*compiler, *sources, *link], check=True, cwd=scratch)
            return
        objects = [str(Path(scratch, Path(source).stem + ".o")) for source in sources]
        commands = [[*compiler, "-c", source, "-o", name] for source, name in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: subprocess.run(command, check=True), commands))
        subprocess.run([*compiler, *objects, *link], check=True)

    def _commands(self, root: Path, include: list[str], output: Path) -> tuple[list[str], list[str]]:
        """How this platform compiles, and what it adds to link."""
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        headers = [f"-I{path}" for path in include]  # all compilers accept this form
        if sys.platform == "win32":
            flags = [os.environ.get("CXX", "cl"), "/nologo", "/std:c++17", "/O2", "/DNDEBUG", "/EHsc", "/MP"]
            link = ["/LD", "/link", f"/LIBPATH:{Path(sys.base_prefix) / 'libs'}", f"/OUT:{output}"]
            return [*flags, *headers, *extra], link
        flags = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O2", "-DNDEBUG", "-fPIC"]
        flags += ["-fvisibility=hidden", "-Wno-invalid-offsetof"]
        # No local path in the binary: the same sources and compiler give the same wheel on every machine.
        flags += [f"-ffile-prefix-map={path}=." for path in (root, *include)]
        link = ["-shared", "-o", str(output)]
        if sys.platform == "darwin":  # Python defines the undefined symbols; ARCHFLAGS names the target processor
            flags += shlex.split(os.environ.get("ARCHFLAGS", ""))
            link += ["-undefined", "dynamic_lookup"]
        else:  # a program may load a different libstdc++, as conda's programs do
            link += ["-static-libstdc++", "-static-libgcc"]
        return [*flags, *headers, *extra], link

    def clean(self, versions: list[str]) -> None:
        """Remove the compiled extension."""
        for path in (Path(self.root) / "src" / "t2j_core").glob("_native.*"):
            if path.suffix != ".pyi":
                path.unlink()
