"""Whether an image is of the kind a model was trained on: its scale, species and preservation."""

import warnings
from collections.abc import Mapping
from typing import Final

from stexpr.data.section import check_mpp
from stexpr.errors import DomainWarning
from stexpr.inference.encoder import ModelInput, PatchModel

__all__ = ["TISSUE_KEYS", "foreign", "warn_of_foreign"]

TISSUE_KEYS: Final = ("species", "tissue", "preservation", "technology")
"""What may be said of an image; the model's provenance says the same of its training data."""
_COARSER: Final = 1.05


def foreign(model: PatchModel | ModelInput, mpp: float, about: Mapping[str, str | None]) -> tuple[str, ...]:
    """Say in what an image differs from the model's training data.

    Patches are resampled to the model's pixel size whatever the image's is. What resampling cannot mend is said: an image
    coarser than the model's pixels lacks the detail the model was trained on.

    Args:
        model: The model.
        mpp: Microns per level-0 pixel of the image.
        about: What is known of the image, of `TISSUE_KEYS`; what is missing or None is not compared.

    Returns:
        One sentence for each difference.

    Raises:
        ScaleError: The pixel size is absurd.
    """
    check_mpp(mpp, "the image")
    trained = model.preprocessing.mpp
    found = []
    if mpp > trained * _COARSER:
        found.append(f"the image has {mpp:.3g} um/px, coarser than the {trained:.3g} um/px the model was trained at")
    for key in TISSUE_KEYS:
        own, theirs = about.get(key), model.provenance.get(key)
        if own and theirs and own.casefold() != str(theirs).casefold():
            found.append(f"{key}: the image is of {own}, the model was trained on {theirs}")
    return tuple(found)


def warn_of_foreign(
    model: PatchModel | ModelInput, mpp: float, about: Mapping[str, str | None], stacklevel: int = 3
) -> tuple[str, ...]:
    """Warn of each difference `foreign` finds, and return them.

    Raises:
        ScaleError: The pixel size is absurd.
    """
    found = foreign(model, mpp, about)
    for sentence in found:
        warnings.warn(f"{sentence}: the predictions were not tested there", DomainWarning, stacklevel=stacklevel)
    return found
