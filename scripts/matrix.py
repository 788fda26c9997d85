"""Test the installed packages with the installed JAX and PyTorch, and record the result. `nox -s matrix` runs this.

The script tests the packages whose requirements the installed versions meet: t2j-dist needs a newer JAX than the
others. If everything passes, `python scripts/matrix.py` adds one row to `docs/versions.json` and writes the table of
`docs/versions.md` again. `--wheels FOLDER` names the tested wheels, `--dry` only tests, and everything after `--` goes
to pytest.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import requires, version
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "docs" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
PACKAGES = ("t2j-core", "t2j-autodiff", "t2j-dist")
BEGIN, END = "<!-- table: written by scripts/matrix.py -->", "<!-- end of table -->"

Row = dict[str, str | int]


def main() -> int:
    """Test and record. The exit code is 0 if everything passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args()
    counts = {"passed": 0, "failed": 0, "skipped": 0, "xfailed": 0}
    packages = [package for package in PACKAGES if is_met(package)]
    for package in packages:
        for key, count in run(package, options.pytest).items():
            counts[key] += count
    row: Row = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "torch", "numpy")},
        "ffi": ffi_version(),
        "packages": ", ".join(package.removeprefix("t2j-") for package in packages),
        "extension": digest(options.wheels),
        **counts,
        "date": datetime.date.today().isoformat(),
    }
    sys.stdout.write(f"{row}\n")
    if counts["failed"] or not counts["passed"]:
        return 1
    if not options.dry:
        note(row)
    return 0


def is_met(package: str) -> bool:
    """Whether the installed versions meet the requirements of an installed package."""
    needs = [Requirement(line) for line in requires(package) or ()]
    return all(need.specifier.contains(version(need.name), prereleases=True) for need in needs if not need.marker)


def run(package: str, arguments: list[str]) -> dict[str, int]:
    """The numbers of tests of a package that passed, failed, were skipped, and failed as expected."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", str(ROOT / "packages" / package), *arguments]
        code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
        if not report.exists():
            return {"failed": 1}
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    kinds = [mark.get("type") for case in cases for mark in case.findall("skipped")]
    xfailed = kinds.count("pytest.xfail")
    skipped = len(kinds) - xfailed
    return {
        "passed": len(cases) - failed - len(kinds),
        "failed": max(failed, int(code not in (0, 5))),
        "skipped": skipped,
        "xfailed": xfailed,
    }


def ffi_version() -> str:
    """The version of XLA's FFI in the installed jaxlib."""
    from t2j_core import environment_info

    return str(environment_info()["xla_ffi"])


def digest(folder: Path | None) -> str:
    """The first digits of the SHA-256 of the extension in the wheel. All cells of one Python have the same digits.

    The wheel itself is no use here: it contains its version, which changes with every commit.
    """
    wheels = [] if folder is None else sorted(folder.glob("t2j_core-*.whl"))
    if not wheels:
        return "not from a wheel"
    with zipfile.ZipFile(wheels[-1]) as wheel:
        (extension,) = (name for name in wheel.namelist() if Path(name).suffix in (".so", ".pyd"))
        return hashlib.sha256(wheel.read(extension)).hexdigest()[:12]


def note(row: Row) -> None:
    """Insert a row into the file, in order, and write the table."""
    rows: list[Row] = json.loads(ROWS.read_text()) if ROWS.exists() else []
    same = ("python", "jax", "torch", "numpy")
    rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
    rows.sort(key=lambda row: [[int(n) for n in str(row[key]).split("+")[0].split(".")] for key in same])
    ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(rows) + END + rest.split(END)[1])


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| Python | jax | XLA FFI | torch | numpy | packages | passed | failed | skipped | extension | on |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        skipped = f"{row['skipped']}, {row['xfailed']} expected failures" if row["xfailed"] else f"{row['skipped']}"
        cells = [row[key] for key in ("python", "jax", "ffi", "torch", "numpy", "packages", "passed", "failed")]
        lines.append(f"| {' | '.join(map(str, cells))} | {skipped} | `{row['extension']}` | {row['date']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
