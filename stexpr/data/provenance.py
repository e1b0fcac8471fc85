"""What `uns["stexpr"]` of an AnnData says: how each thing that stexpr added to it was made."""

import json
from collections.abc import Mapping
from typing import Any

from stexpr.errors import DataError
from stexpr.types import PROVENANCE

__all__ = ["note", "noted", "read_provenance"]

ADDED = "tl"
"""Key of what was added to an AnnData, by name; beside it may stand what a run said of its predictions."""


def read_provenance(adata: Any) -> dict[str, Any]:
    """Return what an AnnData says of its origin, empty where it says nothing.

    Raises:
        DataError: `uns["stexpr"]` is something else.
    """
    said = adata.uns.get(PROVENANCE, {})
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except ValueError:
            said = None
    if not isinstance(said, Mapping):
        raise DataError(f"uns[{PROVENANCE!r}] holds {type(adata.uns[PROVENANCE]).__name__}, not what stexpr writes; rename it")
    return dict(said)


def note(adata: Any, key: str, values: Mapping[str, Any]) -> None:
    """Record how something was made; what is recorded of other keys stays.

    Args:
        adata: The AnnData, changed in place.
        key: Where the thing is, such as the key in `obsm`.
        values: Plain JSON values.

    Raises:
        DataError: `uns["stexpr"]` is something else.
    """
    said = read_provenance(adata)
    said[ADDED] = {**said.get(ADDED, {}), key: dict(values)}
    adata.uns[PROVENANCE] = json.dumps(said, default=lambda value: value.item())  # counts of a reader may be NumPy's


def noted(adata: Any, key: str) -> dict[str, Any]:
    """Return how something was made, empty where it was not recorded.

    Raises:
        DataError: `uns["stexpr"]` is something else.
    """
    values = read_provenance(adata).get(ADDED, {}).get(key, {})
    return dict(values)
