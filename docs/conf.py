"""How Sphinx builds the documentation: make docs."""

import dataclasses
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import hpcdml  # noqa: E402

project = "hpcdml"
author = "the hpcdml authors"
version = release = hpcdml.__version__
html_title = f"hpcdml {version}"
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_options"]
exclude_patterns = ["_ext", "_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages may begin their sections where they like

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_use_ivar = True
html_copy_source = False
html_show_sphinx = False


def add_help(app, what, name, item, options, lines):
    """Tell of each field of a group of options what its help text says."""
    fields = dataclasses.fields(item) if what == "class" and dataclasses.is_dataclass(item) else ()
    texts = {field.name: field.metadata["help"] for field in fields if "help" in field.metadata}
    if texts:
        lines += ["Args:", *(f"    {name}: {text}" for name, text in texts.items()), ""]


def setup(app):
    """Called by Sphinx. The priority puts it before napoleon, which reads what is added."""
    app.connect("autodoc-process-docstring", add_help, priority=100)
