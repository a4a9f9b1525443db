"""The page at /: page.html, and a policy by which a browser runs its style and its script and nothing else.

The page is served without the key, as it has no secret. What it asks for needs the key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

PAGE = Path(__file__).with_name("page.html")


class Page:
    """The file as answers. OSError: it cannot be read."""

    def __init__(self) -> None:
        text = PAGE.read_text(encoding="utf-8")
        self._content = text.encode()
        self._headers = {
            "Content-Security-Policy": policy(text),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",  # a new version of the server has a new page
        }

    def response(self) -> Response:
        return Response(self._content, headers=self._headers, media_type="text/html")


def policy(page: str) -> str:
    """The Content-Security-Policy of a page with one <style> and one <script>, both inline."""
    directives = {
        "default-src": "'none'",
        "script-src": source(page, "script"),
        "style-src": source(page, "style"),
        "img-src": "data:",  # the empty icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # no text becomes markup or a script
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def source(page: str, tag: str) -> str:
    """The hash that allows the content of an element: "'sha256-...'"."""
    [content] = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
