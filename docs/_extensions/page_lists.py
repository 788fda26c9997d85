"""The directive `{pages}`: a list of pages, made from the pages themselves, which is also a hidden `toctree`.

    ```{pages}
    :glob:
    :pictures:

    *
    ```

Each page is shown with its title and one sentence: the `description` of its front matter, else the first sentence below
its title. An entry may give another: `memory: Who owns which memory.` With `:pictures:` a page is shown with its first
picture and the packages that it installs; a page without a picture is an error.
"""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from page_facts import Facts, facts_of
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.directives.other import TocTree
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError


class PageList(nodes.General, nodes.Element):
    """A placeholder for the list until all pages are read."""


class Pages(TocTree):
    """List pages with a sentence each."""

    option_spec: ClassVar[dict[str, Any]] = {**TocTree.option_spec, "pictures": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return a `PageList`, and the hidden `toctree` of the same pages."""
        sentences: dict[str, list[nodes.Node]] = {}
        entries = []
        for entry in self.content:
            name, _, sentence = entry.partition(": ")
            entries.append(name)
            if sentence:
                sentences[name], _ = self.parse_inline(sentence)
        self.content = StringList(entries, source=self.state.document.current_source)
        self.options["hidden"] = None
        toctree = super().run()
        (listed,) = toctree[0].findall(addnodes.toctree)
        folder = self.env.docname.rpartition("/")[0]
        given = {f"{folder}/{name}".lstrip("/"): nodes for name, nodes in sentences.items()}
        shown = PageList(pages=listed["includefiles"], sentences=given, pictures="pictures" in self.options)
        return [shown, *toctree]


def show_lists(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace each `PageList` by the cards of its pages."""
    for listed in list(doctree.findall(PageList)):
        cards = nodes.container(classes=["t2j-cards"] + ["t2j-gallery"] * listed["pictures"])
        for page in listed["pages"]:
            facts = facts_of(app.env, page)
            if listed["pictures"] and facts.picture is None:
                raise ExtensionError(f"{app.env.doc2path(page)}: the gallery needs a picture, and this page draws none")
            sentence = listed["sentences"].get(page, facts.sentence)
            address = app.builder.get_relative_uri(docname, page)
            cards += card(app.env, page, address, facts, sentence, listed["pictures"])
        listed.replace_self(cards)


def card(
    env: BuildEnvironment, page: str, address: str, facts: Facts, sentence: list[nodes.Node], pictures: bool
) -> nodes.Node:
    """The card of a page: picture, title, sentence, packages."""
    shown = nodes.container(classes=["t2j-card"])
    if pictures and facts.picture is not None:
        picture = facts.picture.deepcopy()
        picture["alt"] = ""  # the title is next to it
        picture.attributes.pop("width", None)
        shown += nodes.container("", picture, classes=["t2j-thumbnail"])
    title = nodes.reference("", "", internal=True, refuri=address)
    title += [child.deepcopy() for child in env.titles[page].children]
    shown += nodes.paragraph("", "", title, classes=["t2j-card-title"])
    shown += nodes.paragraph("", "", *[node.deepcopy() for node in sentence])
    if pictures and facts.packages:
        names = [nodes.inline(name, name, classes=["t2j-package"]) for name in facts.packages]
        shown += nodes.paragraph("", "", *names, classes=["t2j-packages"])
    return shown


def stale_lists(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages with lists. They are written again at each build, because the listed pages may have changed."""
    return [page for page in env.found_docs if page.rpartition("/")[2] == "index"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_node(PageList)
    app.add_directive("pages", Pages)
    app.connect("doctree-resolved", show_lists)
    app.connect("env-updated", stale_lists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
