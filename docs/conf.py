"""The documentation site: Sphinx from the pages beside this file.

    python -m sphinx -W --keep-going docs site

Needs `pip install 'relu_ops[docs]'`. Warnings are errors; a link to a page or a heading that is not
there is a warning.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

from relu_ops import __version__, cli

project = "relu_ops"
author = copyright = "relu_ops contributors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"relu_ops {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
copybutton_exclude = ".linenos"

napoleon_use_ivar = True
napoleon_use_rtype = False

_COMMANDS = "<!-- commands -->"
_ABOVE = {"README": "index", "SECURITY": "security", "CHANGELOG": "changelog"}
"""Pages of the repository's root, and what they are here."""


def _write_commands(app: Any, page: str, source: list[str]) -> None:
    """Put the help of every verb where a page asks for it."""
    if _COMMANDS not in source[0]:
        return
    parts = []
    for verb in cli.verbs():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([verb, "--help"])
        parts.append(f"## {verb}\n\n```text\n{text.getvalue().rstrip()}\n```\n")
    source[0] = source[0].replace(_COMMANDS, "\n".join(parts))


def _turn_links(app: Any, page: str, source: list[str]) -> None:
    """Let links to the repository's root lead to the pages here."""
    for name, here in _ABOVE.items():
        source[0] = re.sub(rf"\]\(((?:\.\./)*)\.\./{name}\.md", rf"](\g<1>{here}.md", source[0])


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _write_commands)
    app.connect("source-read", _turn_links)
