"""Builds the documentation: python -m sphinx -W -b html docs docs/_build."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_tools"))

import exajax

project = "exajax"
version = release = exajax.__version__
copyright = "the exajax authors, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "directives"]
exclude_patterns = ["_build", "_tools"]
html_theme = "sphinx_book_theme"
html_title = "exajax"
html_theme_options = {"show_navbar_depth": 2, "show_toc_level": 2}
html_copy_source = False

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3

default_role = "code"  # docstrings are Markdown-like: `name` is code
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
