"""Write the addresses of a repository into the metadata and the README of a package; the release runs it.

`python scripts/project_urls.py packages/t2j-core https://HOST/OWNER/NAME t2j-core-v1.2.3`
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path


def write_addresses(package: Path, address: str, tag: str) -> None:
    """Add `[project.urls]` to `pyproject.toml`, and make relative links of `README.md` absolute, for PyPI."""
    folder = f"packages/{package.resolve().name}"
    urls = {
        "Repository": address,
        "Documentation": f"{address}/tree/{tag}/docs",
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/{tag}/{folder}/CHANGELOG.md",
    }

    def absolute(link: re.Match[str]) -> str:
        return f"]({address}/blob/{tag}/{posixpath.normpath(f'{folder}/{link[1]}')}"

    with (package / "pyproject.toml").open("a", encoding="utf-8", newline="\n") as metadata:
        metadata.write("\n[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in urls.items()))
    readme = package / "README.md"
    text = re.sub(r"\]\((\.\./[^)#\s]+)", absolute, readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    package, address, tag = sys.argv[1:]
    write_addresses(Path(package), address, tag)
