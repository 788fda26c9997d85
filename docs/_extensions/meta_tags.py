"""The tags from which search engines and chats make a preview of a page: title, description, picture.

The Open Graph protocol wants absolute addresses, so there is a picture only if the site has one (`html_baseurl`).
"""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any
from urllib.parse import urljoin

from docutils import nodes
from page_facts import facts_of
from sphinx.application import Sphinx

PICTURE = "_static/demo.png"  # of pages without one


def add_tags(app: Sphinx, docname: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Add the tags of a page to its head."""
    if doctree is None:  # the search page, the index, source code
        return
    facts = facts_of(app.env, docname)
    description = textwrap.shorten(facts.paragraph, 200, placeholder=" ...")
    shown = app.env.titles[docname].astext()
    properties = {"og:title": shown, "og:type": "website", "og:site_name": app.config.project}
    names = {}
    if description:
        properties["og:description"] = description
        if not any(meta.get("name") == "description" for meta in doctree.findall(nodes.meta)):
            names["description"] = description
    if app.config.html_baseurl:
        properties["og:url"] = urljoin(app.config.html_baseurl, app.builder.get_target_uri(docname))
        picture = PICTURE if facts.picture is None else f"_images/{app.env.images[facts.picture['uri']][1]}"
        properties["og:image"] = urljoin(app.config.html_baseurl, picture)
        names["twitter:card"] = "summary_large_image"
    tags = [f'<meta property="{key}" content="{escape(value)}">' for key, value in properties.items()]
    tags += [f'<meta name="{key}" content="{escape(value)}">' for key, value in names.items()]
    context["metatags"] += "\n" + "\n".join(tags)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("html-page-context", add_tags)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
