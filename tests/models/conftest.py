"""Small models and batches; stexpr is imported inside, after the root conftest has set up the shape checks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

WINDOW_PX, N_MAIN, N_AUXILIARY = 32, 5, 9


@pytest.fixture(scope="session")
def training_counts() -> dict[str, Any]:
    """Counts of 60 spots whose depth varies; the last main gene is never seen."""
    rng = np.random.default_rng(0)
    library = rng.integers(500, 4000, 60).astype(np.float32)
    rates = rng.uniform(0.001, 0.01, N_MAIN + N_AUXILIARY)
    counts = rng.poisson(rates * library[:, None]).astype(np.float32)
    counts[:, N_MAIN - 1] = 0
    return {"main": counts[:, :N_MAIN], "auxiliary": counts[:, N_MAIN:], "library": library}


@pytest.fixture(scope="session")
def make_model(training_counts: dict[str, Any]) -> Callable[..., Any]:
    """Build a model the way a study does; `auxiliary=False` builds it without the head."""
    from stexpr.config import AuxiliaryConfig, NetworkConfig
    from stexpr.models.objectives import make_objective
    from stexpr.models.spot import build_spot_regressor
    from stexpr.panel import ExpressionTransform

    def build(
        *,
        auxiliary: bool = True,
        weight: float = 1.0,
        standardize: bool = True,
        window_px: int = WINDOW_PX,
        fields_px: tuple[int, ...] = (),
        seed: int = 0,
        components: Any = None,
        **config: Any,
    ) -> Any:
        head = AuxiliaryConfig(weight=weight, standardize=standardize)
        network = NetworkConfig(**{"backbone": "tiny", "auxiliary": head, **config})
        fitted = {"library": training_counts["library"], "transform": ExpressionTransform()}
        objectives = {
            role: make_objective(network.loss, counts=training_counts[role], standardize=scaled, **fitted)
            for role, scaled in (("main", True), ("auxiliary", standardize))
        }
        model = build_spot_regressor(
            network,
            window_px=window_px,
            fields_px=fields_px,
            main_objective=objectives["main"],
            auxiliary_objective=objectives["auxiliary"] if auxiliary else None,
            seed=seed,
            components=components,
        )
        return model.to(memory_format=torch.channels_last)

    return build


@pytest.fixture(scope="session")
def make_batch(training_counts: dict[str, Any]) -> Callable[..., Any]:
    """Draw a batch of noise patches, in memory as the dataset gives them: channels last."""
    from stexpr.types import SpotBatch

    def draw(n: int = 4, *, window_px: int = WINDOW_PX, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        patches = torch.from_numpy(rng.integers(0, 256, (n, window_px, window_px, 3), dtype=np.uint8))
        rows = rng.choice(len(training_counts["library"]), n, replace=False)
        main, auxiliary, library = (torch.from_numpy(training_counts[key][rows]) for key in ("main", "auxiliary", "library"))
        return SpotBatch(patches.permute(0, 3, 1, 2), main, auxiliary, library)

    return draw
