"""The documentation site: `make docs` builds it from this folder, without a network and for reading without one."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contracts.version import VERSION  # noqa: E402

project = "SAPO on Ray"
release = version = VERSION
copyright = ""
extensions = ["myst_parser", "generated"]
myst_heading_anchors = 4
"""Links to headings as GitHub makes them."""
exclude_patterns = ["build"]
html_theme = "furo"
html_title = f"SAPO on Ray {VERSION}"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_theme_options = {"navigation_with_keys": True}
