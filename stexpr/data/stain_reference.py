"""The stain that the patches of a cohort were brought to, which new images have to be brought to as well."""

import json
from typing import Any

from stexpr.data.manifest import section_files
from stexpr.data.stain import STANDARD, profile_of
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError


def stain_reference(cohort: PreparedCohort) -> dict[str, Any] | None:
    """Return the profile of the cohort's reference section, or the standard one, as `data.stain` describes it.

    None where colors are plain.

    Raises:
        DataError: The metadata of that section are missing or do not hold it.
    """
    if cohort.standardized:
        return STANDARD.describe()
    section = cohort.manifest.stain_reference
    if cohort.manifest.stain == "none" or section is None:
        return None
    path = cohort.path / section_files(section)[2]
    try:
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stain"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} does not hold the stain the cohort was brought to; run stexpr prepare again") from err
    profile_of(described)
    return described
