"""Settings of the book: `sphinx-build -nW -j 2 docs build/book`."""

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

project = "keras_vd"
author = "keras_vd contributors"
copyright = author
version = release = (
    (ROOT / "keras_vd" / "version.py").read_text().split('"')[-2]
)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build", "jupyter_execute"]

# Pages.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_update_mathjax = False
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # of backends, which look for a GPU
# Nothing may be fetched: formulas are MathML, which needs no script.
html_math_renderer = "mathml"
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# Reference.
default_role = "literal"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    *("Input shape", "Output shape", "Losses"),
]
# Names whose pages are elsewhere, and classes that users never make.
nitpick_ignore_regex = [
    (r"py:exc", r"\w*(Error|Warning)"),
    (r"py:class", r"numpy\..*"),
    (r"py:class", r"keras_vd\.(calibration|posteriors\.binding)\..*"),
]

# Looks.
html_theme = "furo"
html_title = f"keras_vd {version}"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False


def _deal(app: Any, env: Any, docnames: list[str]) -> None:
    """Spread the pages with long cells over the processes of `-j 2`.

    Sphinx gives each process neighbours of the alphabet, and the course would
    be in one piece, of four.
    """
    docnames[:] = [x for start in range(4) for x in docnames[start::4]]


def setup(app: Any) -> None:
    """Have pages read in another order than that of their names."""
    app.connect("env-before-read-docs", _deal)
