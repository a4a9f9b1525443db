"""The flags: what is parsed, refused and adjusted."""

from __future__ import annotations






