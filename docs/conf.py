"""How the documentation is built: `sphinx-build -W docs docs/_build`; nothing is fetched."""

import logging
import os
import sys
from pathlib import Path

import fewshot_ad

sys.path.insert(0, str(Path(__file__).parent))  # gallery.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no example may fetch weights
for name in ("onnx_ir", "onnxscript"):  # they tell hundreds of their steps
    logging.getLogger(name).setLevel(logging.WARNING)

project = "fewshot_ad"
version = release = fewshot_ad.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
# Docstrings put code between single backticks.
default_role = "literal"
nitpicky = True

html_theme = "furo"
html_show_copyright = False
html_title = f"fewshot_ad {version}"

# Headings of Markdown pages get the anchors that GitHub gives them.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

# Types stand in the docstrings.
autodoc_typehints = "none"
numpydoc_show_class_members = False
# Every public docstring is checked, but for what is a matter of taste: sections for all that there is to say.
numpydoc_validation_checks = {
    "all",
    "ES01",  # a summary may be enough
    "EX01",  # a test asks for examples where they help
    "GL01",  # ruff has the summary on the first line
    "RT03",  # a return type may say it all
    "SA01",  # "See Also" everywhere
}
# The fields of a record that is returned, and never made by a caller, are its attributes.
numpydoc_validation_overrides = {"PR01": [r"(?s)\A(?!.*\nParameters\n).*\nAttributes\n"]}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # Those whose names begin with a number; others are tools to be copied.
    "filename_pattern": r"/\d\d_",
    "ignore_pattern": r"^\D",
    "within_subsection_order": "FileNameSortKey",
    "reset_argv": "gallery.arguments",
    "reset_modules": ("matplotlib", "gallery.limit_time"),
    "reset_modules_order": "both",
    "parallel": True,  # in as many processes as sphinx-build -j says
    "capture_repr": (),
    "download_all_examples": False,
    "show_signature": False,
}

# GitHub makes its headings' anchors with a script.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_timeout = 20
linkcheck_retries = 2


def _skip(app, what, name, obj, skip, options):
    """Leave out what scikit-learn and `NamedTuple` add to a class: it is documented there."""
    return skip or name.endswith("_request") or type(obj).__name__ == "_tuplegetter"


def setup(app):
    """Connect the hook above; called by Sphinx."""
    app.connect("autodoc-skip-member", _skip)
