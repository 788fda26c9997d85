"""Sphinx configuration of this site: `nox -s docs`."""

import os
from importlib import metadata

project = "t2j"
author = "the authors of t2j"
copyright = "the authors of t2j, MIT licence"
release = metadata.version("t2j-core")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path: list[str] = []
exclude_patterns = ["_build"]

# Pages with code cells run at every build, each in its own process. An exception fails the build.
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove-warn"  # a page must not show warnings
os.environ.setdefault("T2J_PROGRESS_SECONDS", "0")  # nor what is slow where it is built
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings are Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "t2j"
html_static_path = ["_static"]
html_css_files = ["t2j.css"]
html_theme_options = {"source_directory": "docs/"}
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

# Only `nox -s docs -- --links` uses the network.
linkcheck_timeout = 15
linkcheck_retries = 2
