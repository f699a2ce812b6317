"""Sphinx configuration. `make docs` builds the pages with warnings as errors and runs the examples."""

import importlib.metadata
import os
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

# The gallery runs in this process: threads enough for batched LAPACK calls that wait for each other.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

project = "lrjax"
author = "the lrjax authors"
copyright = author
release = version = importlib.metadata.version("lrjax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py"]
default_role = "literal"  # docstrings write `code` with single backticks

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 2
myst_update_mathjax = False  # there is none

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state types and shapes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute that is also a property is described once

# The gallery is made of the scripts in examples/; without any, the pages build all the same.
if any(Path(__file__).parent.parent.glob("examples/plot_*.py")):
    extensions.append("sphinx_gallery.gen_gallery")
    sphinx_gallery_conf = {
        "examples_dirs": "../examples",
        "gallery_dirs": "gallery",
        "filename_pattern": r"/plot_",
        "ignore_pattern": r"(^|/)(?!plot_)[^/]*\.py$",
        "abort_on_example_error": True,
        "download_all_examples": False,
        "show_memory": False,
        "write_computation_times": False,
        "remove_config_comments": True,
    }
else:
    exclude_patterns.append("gallery")
    suppress_warnings = ["toc.not_readable", "toc.excluded"]

html_theme = "furo"
html_title = "lrjax"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def mathml(self, node):
    """Formulas as MathML, which browsers draw themselves: no script, and no network."""
    self.body.append(convert(node.astext(), display="block" if isinstance(node, nodes.math_block) else "inline"))
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))


html_math_renderer = "mathml"
html_css_files = ["lrjax.css"]
html_static_path = ["_static"]
