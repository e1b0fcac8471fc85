"""A board and maps made by hand, with names that try to break out of a page."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.evaluate.page.maps import SectionMap

EVIL_MODEL = "</script><script>document.title='broken'</script> \"b0\" & 'b1'"
EVIL_GENE = "<img src=x onerror=\"document.title='broken'\">"
EVIL_PATIENT = 'P"<b>1'
LONG_MODEL = "a_backbone_whose_name_goes_on_and_on_for_longer_than_any_screen_of_a_telephone_is_wide"
GENES = [EVIL_GENE, *(f"GENE{i}" for i in range(1, 30))]
MODELS = {
    "tiny + aux": ("network", 0.41),
    "tiny": ("network", 0.40),
    EVIL_MODEL: ("network", 0.35),
    LONG_MODEL: ("network", 0.30),
    "color ridge": ("baseline", 0.25),
    "training mean": ("baseline", np.nan),
    "neighbor oracle": ("reference", 0.52),
}
PATIENTS = [EVIL_PATIENT, "P2", "P3"]


def make_board(*, extras: bool = True, **changes: Any) -> Leaderboard:
    """Make a board; `extras` adds the columns of ceilings and spatial metrics, `changes` replace fields."""
    rng = np.random.default_rng(0)
    kinds, r = [kind for kind, _ in MODELS.values()], np.array([value for _, value in MODELS.values()])
    models = pd.DataFrame(
        {
            "rank": pd.array([*range(1, len(MODELS)), None], dtype="Int64"),
            "model": list(MODELS),
            "kind": kinds,
            "r": r,
            "r_low": r - 0.04,
            "r_high": r + 0.04,
            "interval": [None if np.isnan(value) else "95 % t over patients" for value in r],
            "n_seeds": 1,
            "r_seed_sd": np.nan,
            "spearman": r - 0.02,
            "rmse": 0.5,
            "mae": 0.4,
            "r2": [0.1, 0.05, 0.3, -0.1, 0.02, 0.0, 0.2],
            "genes_median_r_above_0": pd.array([29, 28, 27, 26, 9, None, 30], dtype="Int64"),
            "genes_median_r_above_0.5": pd.array([8, 7, 6, 5, 4, None, 9], dtype="Int64"),
            "genes_above_chance": "0 of 30",
            "n_genes": 30,
            "n_patients": 3,
            "n_sections": 3,
            "n_spots": 12_000,
            "epochs": ["8", "7–9", "8", "8", None, None, None],
            "minutes": 1.5,
            "parameters": pd.array([11_000_000, 10_000_000, 9, 8, None, None, None], dtype="Int64"),
        }
    )
    genes = pd.DataFrame({"rank": range(1, 31), "gene": GENES, "n_patients": 3})
    if extras:
        ceiling = np.linspace(0.9, 0.1, 30)
        models["ceiling"], models["r_over_ceiling"], models["ssim"] = 0.6, r / 0.6, 0.3
        genes = genes.assign(
            ceiling=ceiling,
            ceiling_low=ceiling - 0.02,
            ceiling_high=ceiling + 0.02,
            ceiling_depth_blind=ceiling - 0.1,
            unpredictable=ceiling < 0.2,
        )
    per_gene = {name: value + np.linspace(0.3, -0.3, 30) + rng.normal(0, 0.02, 30) for name, (_, value) in MODELS.items()}
    comparison = {"a": "tiny + aux", "b": "tiny", "difference": 0.01, "p": 0.25, "verdict": "no difference shown"}
    values = {
        "title": "planted <cohort>, protocol stexpr",
        "card": [("Protocol", "stexpr (abc)"), ("Interval", "95 % t over patients"), ("Warning", "It <leaks>.")],
        "models": models,
        "patients": pd.DataFrame(
            r[:, None] + rng.normal(0, 0.05, (len(MODELS), 3)), index=pd.Index(MODELS, name="model"), columns=PATIENTS
        ),
        "genes": pd.concat([genes, pd.DataFrame(per_gene)], axis=1),
        "comparisons": pd.DataFrame([comparison] if extras else []),
        "notes": ["2 of 4 networks beat the color ridge.", "A note with <b>tags</b>."],
    }
    return Leaderboard(**{**values, **changes})


def make_map(
    section: str, patient: str, genes: list[str], *, side: int = 6, seed: int = 0, thumbnail: bool = True
) -> SectionMap:
    """Make a section on a grid; the first gene rises to the right, the others are random.

    On the thumbnail each spot lies on a black square, all else is white.
    """
    rng, side = np.random.default_rng(seed), 6
    column, row = (axis.ravel().astype(np.float64) for axis in np.meshgrid(np.arange(side), np.arange(side)))
    x, y = 60 + 20 * column, 40 + 20 * row
    picture = np.full((300, 400, 3), 255, dtype=np.uint8)
    for left, top in zip(x.astype(int) - 5, y.astype(int) - 5, strict=True):
        picture[top : top + 10, left : left + 10] = 0
    measured = rng.normal(2, 1, (side * side, len(genes)))
    measured[:, 0] = column
    predicted = {name: measured * 0.5 + rng.normal(0, 0.3, measured.shape) + i for i, name in enumerate(("tiny", EVIL_MODEL))}
    return SectionMap(
        section=section,
        patient=patient,
        x_px=x,
        y_px=y,
        x_um=x * 10,
        y_um=y * 10,
        spot_px=12.0 if thumbnail else None,
        thumbnail=picture if thumbnail else None,
        genes=tuple(genes),
        measured=measured,
        predicted=predicted,
    )


def make_maps() -> list[SectionMap]:
    """A section with a picture, one without a picture and with fewer genes, and one left out for its size."""
    return [
        make_map("S1", EVIL_PATIENT, GENES[:10]),
        make_map("S2", "P2", GENES[:5], seed=1, thumbnail=False),
        replace(make_map("S3", "P3", GENES[:1]), **EMPTY),
    ]


EMPTY: dict[str, Any] = {"genes": (), "measured": np.zeros((36, 0)), "predicted": {"tiny": np.zeros((36, 0))}}
