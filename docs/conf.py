"""How the documentation is built: `make docs`. Nothing is fetched, neither at the build nor by a reader's browser."""

import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

# Numba, once scanpy has started it, gives torch's OpenMP as many threads as there are cores, whatever OMP_NUM_THREADS says;
# on a busy machine training then takes up to fifty times as long.
for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "stexpr"
author = "the stexpr developers"
copyright = "the stexpr developers, Apache-2.0"
version = release = metadata.version("stexpr")

# squidpy's own decorators say this when it is imported; it would stand on top of a tutorial
warnings.filterwarnings("ignore", message=r"'\w+' is not a valid key!", category=SyntaxWarning)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "command_line",
    "docstrings",
    "readme",
]
exclude_patterns = ["tutorials", "build"]
default_role = "code"  # docstrings say `name`, as Markdown does

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
maximum_signature_line_length = 90

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": "made_",
    "copyfile_regex": r"made_\w+\.py",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("figures.scrape",),
    "capture_repr": (),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "nested_sections": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "stexpr"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["stexpr.css"]
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "navigation_with_keys": False,
    "show_toc_level": 2,
}
html_sidebars = {"index": []}
