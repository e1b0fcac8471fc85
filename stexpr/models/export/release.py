"""What is known of an exported model beyond the run it comes from."""

from typing import Any

from stexpr.config import Strict


class Release(Strict):
    """What `stexpr export` knows of a model beyond the folder a run left; empty for such a folder.

    Attributes:
        symmetries: Whether predictions were scored as means over the eight flips and rotations.
        stain_reference: Stain profile that patches are brought to, as `data.stain` describes it.
        scores: r per gene averaged, with interval and ceiling, as the card shows them.
        risk_coverage: Mean absolute error of held-out spots against the share kept when abstaining by novelty, as
            `evaluate.risk_coverage` describes it.
        notes: What a user should know.
    """

    symmetries: bool = False
    stain_reference: dict[str, Any] | None = None
    scores: dict[str, Any] = {}
    risk_coverage: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
