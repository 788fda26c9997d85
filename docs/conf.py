"""Sphinx configuration of this site: `nox -s docs`.

Two variables describe a published site. T2J_SITE_URL is its address, which pictures in link previews need. T2J_ONLINE
allows the network, from which the names of other libraries come. Without it a build needs no network.
"""

import logging
import os
import sys
from importlib import metadata
from pathlib import Path

import zmq
from jupyter_client.manager import KernelManager
from sphinx import addnodes
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
from addresses import origin, repository_url, theme_options, version_for_readers  # noqa: E402

project = "t2j"
author = "the authors of t2j"
copyright = "the authors of t2j, MIT licence"
release = metadata.version("t2j-core")
version = version_for_readers(release)
repository = repository_url(os.environ, origin(HERE))

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "page_lists",
    "notebooks",
    "meta_tags",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

# Pages with code cells run at every build, each in its own process. An exception fails the build.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove-warn"  # a page must not show warnings
if hasattr(KernelManager, "transport_encryption") and zmq.has("curve"):
    KernelManager.transport_encryption.default_value = "auto"  # without encryption each kernel prints a warning
logging.getLogger("traitlets").setLevel(logging.WARNING)  # importing a style of Furo turns on all messages
os.environ.setdefault("T2J_PROGRESS_SECONDS", "0")  # a page must not show what was slow on the machine that built it
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings are Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False

if os.environ.get("T2J_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_timeout = 15
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", None),
    "jax": ("https://docs.jax.dev/en/latest/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "optax": ("https://optax.readthedocs.io/en/latest/", None),
}

html_theme = "furo"
html_title = "t2j"
pygments_dark_style = "a11y-dark"  # comes with Furo, as its style for light pages; the default underlines modules
html_baseurl = os.environ.get("T2J_SITE_URL", "").rstrip("/")
html_baseurl += "/" if html_baseurl else ""
html_favicon = "_static/mark.svg"
html_static_path = ["_static"]
html_css_files = ["t2j.css"]
html_theme_options = theme_options(repository)
html_context = {"repository": repository}
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

# Only `nox -s docs -- --links` and T2J_ONLINE use the network.
linkcheck_timeout = 15
linkcheck_retries = 2


def setup(app: Sphinx) -> None:
    """Link annotations with the private name of `jax.Array` to its page."""
    app.connect("doctree-read", lambda app, tree: [*map(name_publicly, tree.findall(addnodes.pending_xref))])


def name_publicly(reference: addnodes.pending_xref) -> None:
    """Change the target of a reference to `jaxlib._jax.Array`."""
    if reference.get("reftarget", "").endswith("jaxlib._jax.Array"):
        reference["reftarget"] = "jax.Array"
