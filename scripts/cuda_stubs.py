"""Make a CUDA build of torch importable on a machine without CUDA and without the several GB of NVIDIA's wheels.

For tests of versions only: run `python scripts/cuda_stubs.py` in the environment of that torch. For each CUDA library
that torch's libraries need and that is missing, the script writes a stub next to them. The stub has the name and the
symbols that torch asks for. Each symbol is a function that returns `cudaErrorNoDevice`, or a text if it returns the
text of an error. Needs gcc and binutils. `--overrides` prints lines for `uv pip install --override` that exclude
NVIDIA's wheels.

`LIBRARY=FILE` takes the functions of a C file into a library, in place of stubs (`nox -s cuda_fake`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
CUDA_SYMBOL = re.compile(r"_{0,2}(cu|nv|nccl|Cu)|.*(nvshmem|cudnn)")
CUDA_PACKAGE = re.compile(r"(nvidia|cuda|triton)[-\w]*")
TEXT_OF_ERROR = re.compile(r"Get(Last)?(Error|Status)(String|Name)$")
NO_DEVICE = 100  # cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE


def main() -> None:
    """Write the stubs, or print the overrides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overrides", action="store_true", help="print overrides for uv, and do nothing else")
    parser.add_argument("--include", type=Path, default=Path(), help="the folder of the headers of the C files")
    parser.add_argument("sources", nargs="*", metavar="LIBRARY=FILE", help="C files whose functions are not stubs")
    options = parser.parse_args()
    if options.overrides:
        names = {m[0] for line in importlib.metadata.requires("torch") or () if (m := CUDA_PACKAGE.match(line))}
        sys.stdout.writelines(f"{name} ; sys_platform == 'never'\n" for name in sorted(names))
        return
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("torch is not installed in this environment")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    with tempfile.TemporaryDirectory() as temporary:
        objects = {}
        for source in options.sources:
            library, _, file = source.partition("=")
            objects[library] = Path(temporary, f"{library}.o")
            compile_c(Path(file), objects[library], options.include)
        for name, count in write_stubs(folder, objects).items():
            sys.stdout.write(f"{name}: {count} symbols\n")


def compile_c(source: Path, target: Path, include: Path) -> None:
    """Compile a C file for a library."""
    warnings = ("-Wall", "-Werror", "-std=gnu17")
    subprocess.run(["gcc", "-c", "-O1", "-fPIC", *warnings, f"-I{include}", "-o", target, source], check=True)


def write_stubs(folder: Path, objects: Mapping[str, Path]) -> dict[str, int]:
    """Write a stub for each missing library, and return the number of symbols of each.

    The functions of `objects`, by library, take the place of stubs; their libraries are written in any case.
    """
    libraries = sorted(folder.glob("*.so*"))
    present = {path.name for path in (*libraries, *folder.parent.parent.glob("nvidia/**/*.so*"))} - set(objects)
    missing = {name for path in libraries for name in needed(path) if CUDA_LIBRARY.match(name)} - present
    versions: dict[str, set[str]] = defaultdict(set)  # library: the version nodes that torch asks for
    wanted: dict[str, set[str]] = defaultdict(set)  # version node: its symbols; "" for symbols without a version
    defined: set[str] = {name for path in objects.values() for name in functions(path)}
    for path in libraries:
        for library, version in version_needs(path):
            versions[library].add(version)
        for symbol, version, is_defined in symbols(path):
            defined.add(symbol) if is_defined else wanted[version].add(symbol)
    loose = {symbol for symbol in wanted[""] - defined if CUDA_SYMBOL.match(symbol)}
    counts = {}
    for number, name in enumerate(sorted(missing)):
        nodes = {version: wanted[version] for version in versions[name]}
        every = set().union(*nodes.values(), loose if number == 0 else ())  # unversioned symbols may be in any library
        write_stub(folder / name, every, nodes, objects.get(name))
        counts[name] = len(every)
    return counts


def write_stub(path: Path, names: set[str], nodes: dict[str, set[str]], code: Path | None) -> None:
    """Write one library whose functions report that there is no device, except those of `code`."""
    function = '.globl "{0}"\n.type "{0}",@function\n"{0}":\n {1}\n ret\n'
    number, text = f"mov ${NO_DEVICE},%eax", "lea stub_text(%rip),%rax"
    stubs = sorted(names - functions(code)) if code else sorted(names)
    body = "".join(function.format(name, text if TEXT_OF_ERROR.search(name) else number) for name in stubs)
    body += 'stub_text: .asciz "no CUDA device"\n'
    script = ""
    for node, inside in sorted(nodes.items()):
        listed = " ".join(f'"{name}";' for name in sorted(inside))
        script += f"{node} {{ global: {listed} }};\n"
    with tempfile.TemporaryDirectory() as temporary:
        source, map_file = Path(temporary, "stub.s"), Path(temporary, "stub.map")
        source.write_text(f'.text\n{body}.section .note.GNU-stack,"",@progbits\n')
        map_file.write_text(script)
        parts = [str(source), str(code)] if code else ["-nostdlib", str(source)]
        command = ["gcc", "-shared", f"-Wl,-soname,{path.name}", "-o", str(path), *parts]
        subprocess.run([*command, *([f"-Wl,--version-script={map_file}"] if nodes else [])], check=True)


def functions(code: Path) -> set[str]:
    """The functions that compiled code defines for others."""
    return {line.split()[-1] for line in output("nm", "-g", "--defined-only", str(code)).splitlines()}


def output(*command: str) -> str:
    """The output of a command."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def needed(path: Path) -> list[str]:
    """The libraries that a library loads."""
    return re.findall(r"NEEDED.*\[(.*?)\]", output("readelf", "-d", str(path)))


def version_needs(path: Path) -> list[tuple[str, str]]:
    """The (library, version node) pairs that a library asks for."""
    pairs, library = [], ""
    for line in output("readelf", "-V", "--wide", str(path)).splitlines():
        if match := re.search(r"File: (\S+)", line):
            library = match[1]
        elif library and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            pairs.append((library, match[1]))
    return pairs


def symbols(path: Path) -> list[tuple[str, str, bool]]:
    """The (name, version node, is defined) of each dynamic symbol."""
    found = []
    for line in output("nm", "-D", str(path)).splitlines():
        *address, kind, full = line.split() if len(line.split()) >= 2 else ("", "")
        name, _, version = full.partition("@")
        if kind in ("U", "w", "v") and not address:
            found.append((name, version.lstrip("@"), False))
        elif address:
            found.append((name, "", True))
    return found


if __name__ == "__main__":
    main()
