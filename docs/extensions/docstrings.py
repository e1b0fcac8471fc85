"""How docstrings look in the reference: settings without signature, since `stexpr config` shows them with defaults."""

from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject


def shorten(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Drop the signature of a class of settings."""
    return ("", "") if isinstance(thing, type) and issubclass(thing, BaseModel) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx call `shorten` for everything it documents, and head attributes by that word."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
