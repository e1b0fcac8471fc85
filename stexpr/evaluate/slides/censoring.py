"""How likely a patient is still under observation at a time: what inverse-probability-of-censoring weights divide by."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import MetricError
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.kaplan_meier import time_table

__all__ = ["Censoring"]


@dataclass(frozen=True)
class Censoring:
    """The censoring distribution of a fold's training patients.

    Attributes:
        time: Ascending.
        probability: Of not being censored up to and at that time.
    """

    time: Float64[Array, "T"]
    probability: Float64[Array, "T"]

    @classmethod
    def of(cls, time: Float[Array, "P"], event: Bool[Array, "P"]) -> "Censoring":
        """Estimate it from training patients, never from those who are scored; at a tied time events come first.

        Raises:
            DataError: A time that is not positive and finite.
            MetricError: No patient.
        """
        table = time_table(time, event)
        at_risk = table.at_risk - table.events
        return cls(table.time, np.cumprod(1 - table.censored / np.maximum(at_risk, 1)))

    def at(self, times: Float[Array, "K"]) -> Float64[Array, "K"]:
        """Read the probability at times.

        Raises:
            MetricError: A time past the follow-up of the training patients, or where all of them were censored: there is no
                weight, and a made-up one would decide the score.
        """
        beyond = times > self.time[-1]
        if beyond.any():
            raise MetricError(
                f"{int(beyond.sum())} times lie past the last training follow-up, {self.time[-1]:g} (largest: "
                f"{times.max():g}); score up to an earlier time"
            )
        probability = np.r_[1.0, self.probability][np.searchsorted(self.time, times, side="right")]
        if (probability == 0).any():
            raise MetricError(
                f"no training patient is under observation beyond {self.time[-1]:g}, so a patient there has no weight; score "
                "up to an earlier time"
            )
        return np.asarray(probability)
