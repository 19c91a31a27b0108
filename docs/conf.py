"""Settings of the documentation site, which `make docs` builds with Sphinx."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger

# Without a GPU, and whatever is set outside, the pages are the same.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from crbp_d2 import __version__

logger = getLogger(__name__)

project = "crbp_d2"
author = "The crbp_d2 maintainers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"crbp_d2 {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False
myst_update_mathjax = False
# As deep as links between pages name headings.
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Docstrings: single backticks are code, sections are Google's.
default_role = "code"
highlight_language = "none"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False  # They stand in the signatures.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Drive", "Parts", "State", "Observer", "Weight")}
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
add_module_names = False


def to_mathml(node: nodes.Element, *, as_block: bool) -> str:
    """An equation as browsers draw it without a script, so that the pages need no network."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("%s in %s", error, node.astext(), location=node)
        return ""


def visit_inline_math(writer: Any, node: nodes.Element) -> None:
    """An equation in a line."""
    writer.body.append(to_mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_display_math(writer: Any, node: nodes.Element) -> None:
    """An equation by itself."""
    writer.body.append(f'<div class="equation">{to_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def mark_numbers(app: Any, doctree: nodes.document) -> None:
    """Cells of numbers, which are not to be broken, as in `0.990 (0.988-0.994)`."""
    for cell in doctree.findall(nodes.entry):
        if re.fullmatch(r"[-\d.,()/% ]+", cell.astext()):
            cell["classes"].append("number")


def prepare_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Indented paragraphs are listings, as in Markdown."""
    # Napoleon takes the first line of such a docstring for `type: meaning`.
    marked = [""] if what in ("attribute", "data", "property") else []
    above = ""
    for line in lines:
        starts = (
            line.startswith("    ") and marked and not marked[-1] and above[:1] not in ("", " ")
        )
        if starts:
            marked += ["::", ""]
        marked.append(line)
        above = line or above
    lines[:] = marked


def shorten_signature(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    result: str | None,
) -> tuple[str | None, str | None]:
    """Aliases by their names; and names without modules in a signature that is not parsed, for the
    default of a field that a function makes."""

    def short(text: str | None) -> str | None:
        if not text:
            return text
        text = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)
        return re.sub(r"~(\w+\.)+", "", text) if "<factory>" in text else text

    return short(signature), short(result)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_display_math, None))
    app.connect("doctree-read", mark_numbers)
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)
    app.connect("autodoc-process-signature", shorten_signature)
