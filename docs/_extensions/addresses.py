"""Where the repository is published, and the version as the site shows it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from packaging.version import Version

BRANCH = "main"
EDITABLE = ("github.com", "gitlab.com", "bitbucket.org")  # hosts whose "edit" and "view source" addresses Furo knows


def repository_url(environ: Mapping[str, str], remote: str) -> str | None:
    """The public address of the repository: that of the workflow on GitHub, else of the remote; None without either.

    >>> repository_url({"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "me/t2j"}, "")
    'https://github.com/me/t2j'
    >>> repository_url({}, "git@github.com:me/t2j.git")
    'https://github.com/me/t2j'
    >>> repository_url({}, "/home/me/t2j")
    """
    server, name = environ.get("GITHUB_SERVER_URL"), environ.get("GITHUB_REPOSITORY")
    if server and name:
        return f"{server}/{name}"
    short = re.fullmatch(r"(?:\w[\w.-]*@)?([\w.-]+\.[a-z]+):(?!/)(.+)", remote)  # user@host:path, as ssh takes it
    if short:
        host, path = short.groups()
    else:
        parts = urlsplit(remote)
        host, path = parts.hostname or "", parts.path
        if parts.scheme not in ("https", "http", "ssh", "git"):
            return None
    path = path.strip("/").removesuffix(".git")
    if not re.search(r"\.[a-z]+$", host) or "/" not in path:  # `localhost`, an address in numbers, a single name
        return None
    return f"https://{host}/{path}"


def origin(root: Path) -> str:
    """The address of the git remote `origin`; empty without git or without that remote."""
    command = ("git", "-C", str(root), "remote", "get-url", "origin")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def theme_options(repository: str | None) -> dict[str, str]:
    """Furo's options for "edit this page" and "view source"; none where the repository or its host is unknown."""
    if repository is None or urlsplit(repository).hostname not in EDITABLE:
        return {}
    return {"source_repository": f"{repository}/", "source_branch": BRANCH, "source_directory": "docs/"}


def version_for_readers(release: str) -> str:
    """The version without the parts that only builds need.

    >>> version_for_readers("0.2.0"), version_for_readers("0.2.1.dev12+g1234567")
    ('0.2.0', '0.2.1 (in development)')
    """
    version = Version(release)
    return f"{version.base_version} (in development)" if version.is_devrelease else version.public
