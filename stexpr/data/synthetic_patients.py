"""Made-up patients of a slide cohort: what their slides shall show, and what is then said of them in a clinical table."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64

from stexpr.data.synthetic_image import Stain
from stexpr.data.tables import PATIENT

__all__ = ["COLUMNS", "PatientPlan", "clinical_table", "plan_patients"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

COLUMNS = {
    "PLANTED_mut": "MUT where some regions of the slides show enlarged nuclei; missing in one patient",
    "NULL1_mut": "follows nothing; missing in two patients",
    "NULL2_mut": "follows nothing",
    "RARE_mut": "follows nothing, and is MUT in three patients only",
    "SITE_CONF_mut": "follows the site, and so the stain, but nothing in the tissue",
    "KI67": "share of mitosis-like nuclei among those of the tumor in all squares of the patch labels; missing in one patient",
    "OS": "1 where the event was observed; the hazard rises with tumor and falls with immune cells",
    "OS.time": "days",
    "PFI": "as OS, but the hazard also rises with AGE, which no slide shows",
    "PFI.time": "days",
    "GRADE": "G1 to G3, thirds of the patients by KI67 and some noise",
    "SUBTYPE": "stromal, fatty or mixed: which tissue there is more of",
    "SIGNATURE": "the share of immune cells, and some noise",
    "SITE": "where the slides were stained",
    "AGE": "years",
    "SEX": "F or M; follows nothing",
}
"""What each column of the clinical table follows."""

_SITES = 4
_CONFOUNDED = (0.85, 0.85, 0.15, 0.15)  # share of SITE_CONF_mut at each site
_SUBTYPES = {"mixed": (0.0, 0.0, 0.0, 0.0), "stromal": (0.0, 0.6, 0.0, -0.6), "fatty": (0.0, -0.6, 0.0, 0.6)}
_MIX = 1.9  # logits of tumor over immune cells, per SD of patients
_STAIN_SD = 0.05  # within a site
_KI67_LOG_ODDS = (-3.4, 1.0)
_RARE = 3
_MEDIAN_DAYS = 900.0


@dataclass(frozen=True)
class PatientPlan:
    """What the slides of a patient shall show.

    Attributes:
        name: As in the tables.
        site: Where they were stained.
        stain: How.
        n_slides: 1 or 2.
        mutated: Whether some of their nuclei are enlarged.
        mitosis: Log-odds of a nucleus of the tumor to be mitosis-like.
        mix: How much more there is of each tissue than in a typical section, in logits.
        subtype: What `mix` makes of the patient.
    """

    name: str
    site: str
    stain: Stain
    n_slides: int
    mutated: bool
    mitosis: float
    mix: tuple[float, ...]
    subtype: str


def plan_patients(seed: int, n: int, *, mutated: float, two_slides: float) -> list[PatientPlan]:
    """Draw what the slides of each patient shall show.

    Everything is spread evenly over the patients and independent of everything else, so that a small cohort has no
    mutation that comes with a stain by chance more often than it must.

    Args:
        seed: Of the cohort.
        n: Patients.
        mutated: Share of them with the planted mutation.
        two_slides: Share of them with two slides.
    """
    rng = np.random.default_rng([seed, 0])
    at_sites = [Stain.draw(np.random.default_rng([seed, 1, site])) for site in range(_SITES)]
    even = (np.arange(n) + 0.5) / n
    site, subtype = rng.permutation(n) % _SITES, rng.permutation(n) % len(_SUBTYPES)
    is_mutated, has_two = rng.permutation(even) < mutated, rng.permutation(even) < two_slides
    tilt = rng.permutation(np.linspace(-1.7, 1.7, n))
    mitosis = rng.permutation(np.linspace(*_KI67_LOG_ODDS, n))
    plans = []
    for i in range(n):
        kind = list(_SUBTYPES)[subtype[i]]
        mix = np.array(_SUBTYPES[kind]) + _MIX * tilt[i] * np.array([1, 0, -1, 0])
        plans.append(
            PatientPlan(
                name=f"P{i + 1:03d}",
                site=f"site {'ABCD'[site[i]]}",
                stain=_varied(at_sites[site[i]], np.random.default_rng([seed, 2, i])),
                n_slides=1 + int(has_two[i]),
                mutated=bool(is_mutated[i]),
                mitosis=float(mitosis[i]),
                mix=tuple(mix.tolist()),
                subtype=kind,
            )
        )
    return plans


def clinical_table(
    seed: int, plans: list[PatientPlan], seen: pd.DataFrame, *, effect: float, censored: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw what is said of patients whose slides are known.

    Args:
        seed: Of the cohort.
        plans: The patients.
        seen: By patient, what their slides really show: `ki67`, and shares of `tumor` and `immune`.
        effect: Log hazard per SD of the tumor/immune mix.
        censored: Share of patients expected to be censored.

    Returns:
        The clinical table, text and numbers with missing cells; and by patient the `log_hazard` of OS and `log_hazard_pfi`.
    """
    n, rng = len(plans), np.random.default_rng([seed, 3])
    even = (np.arange(n) + 0.5) / n
    age = np.clip(np.round(rng.normal(62, 11, n)), 25, 95)
    hazard = effect * _scaled((seen["tumor"] - seen["immune"]).to_numpy())
    with_age = hazard + 0.5 * effect * _scaled(age)
    table: dict[str, Any] = {PATIENT: [plan.name for plan in plans]}
    table["PLANTED_mut"] = _mutation(np.array([plan.mutated for plan in plans]))
    table["NULL1_mut"], table["NULL2_mut"] = (_mutation(rng.permutation(even) < share) for share in (0.3, 0.5))
    table["RARE_mut"] = _mutation(rng.permutation(n) < _RARE)
    at_site = np.array([_CONFOUNDED["ABCD".index(plan.site[-1])] for plan in plans])
    table["SITE_CONF_mut"] = _mutation(rng.random(n) < at_site)
    table["KI67"] = seen["ki67"].round(4).to_numpy()
    for name, log_hazard in (("OS", hazard), ("PFI", with_age)):
        table[name], table[f"{name}.time"] = _survival(rng, log_hazard, censored)
    ki67 = seen["ki67"].fillna(seen["ki67"].median())  # a slide may be without tumor
    noisy = np.argsort(np.argsort(_scaled(ki67.to_numpy()) + rng.normal(0, 0.4, n)))
    table["GRADE"] = [f"G{1 + 3 * rank // n}" for rank in noisy.tolist()]
    table["SUBTYPE"] = [plan.subtype for plan in plans]
    table["SIGNATURE"] = (_scaled(seen["immune"].to_numpy()) + rng.normal(0, 0.3, n)).round(3)
    table["SITE"] = [plan.site for plan in plans]
    table["AGE"] = age.astype(int)
    table["SEX"] = np.where(rng.random(n) < 0.5, "F", "M")
    clinical = pd.DataFrame(table)
    absent = rng.permutation(n)  # who lacks which label
    for column, rows in {"PLANTED_mut": absent[:1], "NULL1_mut": absent[1:3], "KI67": absent[3:4]}.items():
        clinical.loc[rows, column] = None
    hazards = {PATIENT: clinical[PATIENT], "log_hazard": hazard, "log_hazard_pfi": with_age}
    return clinical, pd.DataFrame(hazards).set_index(PATIENT)


def _varied(stain: Stain, rng: np.random.Generator) -> Stain:
    h, e = np.exp(rng.normal(0, _STAIN_SD, size=2))
    return replace(stain, hematoxylin=stain.hematoxylin * h, eosin=stain.eosin * e)


def _scaled(values: Float[Array, "P"]) -> Float64[Array, "P"]:
    scaled: Array = (values - values.mean()) / values.std()
    return scaled


def _mutation(mutated: Bool[Array, "P"]) -> Array:
    return np.where(mutated, "MUT", "WT").astype(object)


def _survival(rng: np.random.Generator, log_hazard: Float64[Array, "P"], censored: float) -> tuple[Array, Array]:
    """Draw exponential times to the event and, independent of it, to the end of follow-up; whole days, at least 1."""
    from scipy.optimize import brentq

    def excess(log_rate: float) -> float:
        return float(np.mean(1 / (1 + np.exp(log_hazard - log_rate)))) - censored

    leaving = brentq(excess, -30, 30)
    scale = _MEDIAN_DAYS / np.log(2)
    event, end = scale * rng.exponential(np.exp(-log_hazard)), scale * rng.exponential(np.exp(-leaving), len(log_hazard))
    return (event <= end).astype(int), np.ceil(np.minimum(event, end)).astype(int)
