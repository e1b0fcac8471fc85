"""Signatures in the reference: those of settings are left out, since `stexpr config` shows them with defaults."""

from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx


def shorten(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Drop the signature of a class of settings."""
    return ("", "") if isinstance(thing, type) and issubclass(thing, BaseModel) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx call `shorten` for everything it documents."""
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
