"""How the site is made: `make docs`. The reference is written from the code first, so that it cannot say anything else."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402  beside this file

import tokmill  # noqa: E402  so that the site describes this version

project = "tokmill"
author = "tokmill contributors"
copyright = "tokmill contributors"  # noqa: A001  the name that Sphinx wants
release = version = tokmill.__version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"tokmill {tokmill.__version__}"
html_show_sphinx = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
nitpicky = True

generate.write_all(HERE / "reference")
