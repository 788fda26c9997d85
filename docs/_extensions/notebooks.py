"""Each executed page can be downloaded as a notebook with its outputs."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import relative_uri

FOLDER = "_notebooks"
_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")  # a link to another file


def add_link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a link to the notebook below the title of an executed page."""
    if not executed(app, docname) or app.builder.format != "html":
        return
    title = next(iter(doctree.findall(nodes.title)))
    address = relative_uri(app.builder.get_target_uri(docname), f"{FOLDER}/{docname}.ipynb")
    link = nodes.reference("", "Download this page as a notebook (.ipynb)", internal=True, refuri=address)
    title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", "", link, classes=["t2j-notebook"]))


def executed(app: Sphinx, docname: str) -> bool:
    """Whether MyST-NB ran the page."""
    return "kernelspec" in app.env.metadata[docname]


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Copy the notebooks that MyST-NB has written into the site."""
    if exception is not None or app.builder.format != "html":
        return
    written = Path(app.env.mystnb_config.output_folder)  # by MyST-NB
    for docname in app.env.found_docs:
        if executed(app, docname):
            notebook = nbformat.read(written / f"{docname}.ipynb", as_version=4)
            target = Path(app.outdir, FOLDER, f"{docname}.ipynb")
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(cleaned(notebook, docname, app.config.html_baseurl), target)


def cleaned(notebook: nbformat.NotebookNode, docname: str, base: str) -> nbformat.NotebookNode:
    """Remove metadata that only this site needs, and make links absolute, for a notebook that is downloaded."""
    for name in ("source_map", "jupytext", "myst", "mystnb"):
        notebook.metadata.pop(name, None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(lambda link: link_to_site(link, docname, base), cell.source)
        else:
            cell.outputs = shown(cell)
    return notebook


def shown(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The outputs that the page shows: tags of a cell may hide them."""
    tags = cell.metadata.get("tags", ())
    if "remove-output" in tags:
        return []
    return [output for output in cell.outputs if "remove-stderr" not in tags or output.get("name") != "stderr"]


def link_to_site(link: re.Match[str], docname: str, base: str) -> str:
    """The link with the address of the published site, or only its text if the site or the target has no address."""
    text, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(docname), target))
    if not base or path.startswith("..") or not path.endswith(".md"):
        return text
    return f"[{text}]({urljoin(base, path.removesuffix('.md') + '.html')}{anchor or ''})"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("doctree-resolved", add_link)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
