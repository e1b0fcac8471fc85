"""Patients whose hazard is known, with ties, censoring and folds, as tests need them."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from stexpr.evaluate.slides.held_out import HeldOut


@dataclass(frozen=True)
class Survivors:
    log_hazard: np.ndarray
    time: np.ndarray
    event: np.ndarray

    def only(self, rows: np.ndarray) -> "Survivors":
        return Survivors(self.log_hazard[rows], self.time[rows], self.event[rows])


def survivors(n: int, seed: int, *, effect: float = 1.0, decimals: int = 1, censoring: float = 1.0) -> Survivors:
    """Exponential times, rounded so that times tie; log-hazards are rounded too."""
    rng = np.random.default_rng(seed)
    log_hazard = rng.normal(size=n).round(decimals)
    died = rng.exponential(np.exp(-effect * log_hazard))
    left = rng.exponential(1 / censoring, n) if censoring else np.full(n, np.inf)
    time = np.maximum(np.minimum(died, left).round(decimals), 10.0**-decimals)
    return Survivors(log_hazard, time, died <= left)


def held_out(n: int, folds: int = 3) -> HeldOut:
    return HeldOut(tuple(f"p{i}" for i in range(n)), tuple(f"fold {i % folds}" for i in range(n)))


SMALL = st.integers(0, 10_000).map(lambda seed: survivors(12, seed))
