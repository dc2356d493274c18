"""What all pages share: one style, one script that sorts and filters tables, no address of another place."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parent
CSS = (HERE / "report.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "report.js").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.globals |= {"css": Markup(CSS), "script": Markup(SCRIPT), "policy": POLICY}


def render(template: str, **values: Any) -> bytes:
    """A page by its template, UTF-8."""
    return _TEMPLATES.get_template(template).render(values).encode()
