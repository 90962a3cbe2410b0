"""How Sphinx makes the site of these pages: ``make docs``."""

import sys
from pathlib import Path

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent.parent))
from tools.site import docstrings, formulas, pages

project = html_title = "graphopt"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["package.md"]
myst_heading_anchors = 4
default_role = "py:obj"  # a link where there is a description of it, else a name
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
suppress_warnings = ["ref.python"]  # a name that several things have is no link
add_module_names = False
python_maximum_signature_line_length = 80
smartquotes = False  # quotes are those of Python
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False


def setup(app):
    """Connects what the site needs beyond Sphinx."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("doctree-read", typeset)


def read_page(app, name, source):
    source[0] = pages.text(pages.place(name))


def read_docstring(app, what, name, thing, options, lines):
    lines[:] = docstrings.in_fields(lines, is_value=what in {"attribute", "property"})


def typeset(app, document):
    for block in list(document.findall(nodes.literal_block)):
        if formulas.are(block.astext()):
            block.replace_self(nodes.raw("", formulas.mathml(block.astext()), format="html"))
