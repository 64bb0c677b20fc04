"""How Sphinx builds these pages: `make docs`. Nothing here, and nothing that is built, needs a network."""

from importlib.metadata import version as installed_version

project = "batchflow"
author = "the batchflow developers"
copyright = "the batchflow developers"  # noqa: A001 - Sphinx's name for it
release = version = installed_version("batchflow-azure")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns: list[str] = []
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = "batchflow"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Docstrings are plain text with `names` in single backticks: links where the name is documented.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]
