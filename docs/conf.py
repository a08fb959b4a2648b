"""The site: guides, executed tutorials and the API, built with warnings as errors."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
sys.path.insert(0, str(DOCS.parent))

# Tutorials compile many programs that run for milliseconds. Their kernels take over what the tests
# do about it, which halved the time of the first.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import api_pages  # noqa: E402

project = "jaxlimit"
author = "The jaxlimit developers"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]
html_theme = "furo"
html_title = "jaxlimit"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_theme_options = {"source_directory": "docs/"}
# A tutorial is run anew whenever it changes, and at every build in a fresh checkout.
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["*.ipynb"]
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

api_pages.write(DOCS / "api")
