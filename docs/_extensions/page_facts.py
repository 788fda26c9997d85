"""What a page says about itself: one sentence, the packages that it needs, its first picture."""

from __future__ import annotations

import re
from typing import NamedTuple

from docutils import nodes
from sphinx.environment import BuildEnvironment

_END = re.compile(r"[.:!?](?=\s+[A-Z`(]|\s*$)")  # of a sentence; not the dot of "0.6"


class Facts(NamedTuple):
    """What a page says about itself."""

    sentence: list[nodes.Node]  # `description`, else the first sentence outside lists, tables, notes
    paragraph: str  # `description`, else its first paragraph
    packages: list[str]  # of the `pip install` above its first heading
    picture: nodes.image | None  # the first that it has


def facts_of(env: BuildEnvironment, docname: str) -> Facts:
    """Read the page as it is after parsing and execution."""
    tree = env.get_doctree(docname)
    top = next(iter(tree.findall(nodes.section)), tree)
    described = [str(meta["content"]) for meta in tree.findall(nodes.meta) if meta.get("name") == "description"]
    paragraphs = [each for each in tree.findall(nodes.paragraph) if isinstance(each.parent, nodes.section)]
    if described:
        sentence, paragraph = [nodes.Text(described[0])], described[0]
    elif paragraphs:
        sentence, paragraph = first_sentence(paragraphs[0]), one_line(paragraphs[0].astext())
    else:
        sentence, paragraph = [], ""
    blocks = [child.astext() for child in top.children if isinstance(child, nodes.literal_block)]
    packages = [name for block in blocks for name in packages_of(block)]
    pictures = (image for image in tree.findall(nodes.image) if str(image["uri"]).endswith(".png"))
    return Facts(sentence, paragraph, packages, next(pictures, None))


def first_sentence(paragraph: nodes.paragraph) -> list[nodes.Node]:
    """The nodes of a paragraph up to the end of its first sentence. Links become text: they stand in a link."""
    found: list[nodes.Node] = []
    for child in paragraph.children:
        if isinstance(child, nodes.Text):
            text = one_line(child.astext())
            end = _END.search(text)
            found.append(nodes.Text(text[: end.start()] + "." if end else text))
            if end:
                return found
        elif isinstance(child, nodes.literal):
            found.append(child.deepcopy())
        else:
            found.append(nodes.Text(one_line(child.astext())))
    return found


def one_line(text: str) -> str:
    """The text without line breaks."""
    return re.sub(r"\s+", " ", text)


def packages_of(block: str) -> list[str]:
    """The names in the lines of `pip install` of a block, without versions, options, folders and comments.

    >>> packages_of("pip install 'numpyro>=0.15' -q ./packages/t2j-core flax  # on CPUs")
    ['numpyro', 'flax']
    """
    words = [word.strip("'\"") for line in re.findall(r"pip install ([^#\n]*)", block) for word in line.split()]
    return [re.split(r"[\[=<>~!;@]", word)[0] for word in words if re.match(r"\w[^/]*$", word)]
