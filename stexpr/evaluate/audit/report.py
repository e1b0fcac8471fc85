"""The audit of a cohort, a run or a folder of runs.

from stexpr.evaluate.audit.report import audit
audit(Path("cohorts/mob")).leaks
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from stexpr.config import load_study
from stexpr.data.manifest import MANIFEST
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, StexprError
from stexpr.evaluate.audit.content import alike_expression, identical_counts, repeated_barcodes
from stexpr.evaluate.audit.duplicates import Thumbnails, duplicate_patches, thumbnails
from stexpr.evaluate.audit.findings import Audit, Finding, not_done
from stexpr.evaluate.audit.identity import SectionColors, section_identity
from stexpr.evaluate.audit.leakage import check_barcodes, check_patches, check_patient_names, check_sections, check_spots
from stexpr.evaluate.audit.registration import Registration, section_registration
from stexpr.evaluate.audit.runs import audit_run
from stexpr.evaluate.records import CONFIG, RECORD, Run, Runs, read_record, read_records
from stexpr.models.baselines import color_features
from stexpr.types import Progress, silent

__all__ = ["audit", "audit_cohort", "duplicate_findings", "identity_finding", "registration_finding"]


def audit(path: str | Path, *, cohort: str | Path | None = None, progress: Progress = silent) -> Audit:
    """Look for leaks, misplaced spots and whatever else makes a score worth less than it looks.

    Runs are checked one by one, the cohorts they read once each.

    Args:
        path: A prepared cohort, a run, or a folder of runs.
        cohort: Where the runs' cohort is now, if it is not where their configuration says.
        progress: Shows how far it is.

    Returns:
        One finding for each check, also for those that passed or could not be done.

    Raises:
        DataError: The folder is none of these.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return Audit(folder, audit_cohort(PreparedCohort.open(folder), progress=progress))
    if (folder / RECORD).is_file():
        runs = Runs((Run(folder, read_record(folder)),), ())
    elif folder.is_dir() and any(folder.glob(f"*/{RECORD}")):
        runs = read_records(folder)
    else:
        raise DataError(f"{folder} is no prepared cohort ({MANIFEST}), no finished run and no folder of runs ({RECORD})")
    opened: dict[Path, PreparedCohort] = {}
    audited: dict[Path, tuple[Finding, ...]] = {}
    findings: list[Finding] = []
    for run, _ in progress(runs.complete, "auditing runs", len(runs.complete)):
        try:
            place = Path(cohort) if cohort is not None else load_study(run / CONFIG).cohort
            if place not in opened:
                opened[place] = PreparedCohort.open(place)
            findings += audit_run(run, opened[place])
        except StexprError as err:
            reason = f"{err}; name the prepared cohort the run was trained on"
            findings.append(replace(not_done("run", reason, "flag"), subject=run.name))
        else:
            if place not in audited:
                audited[place] = audit_cohort(opened[place], progress=progress)
    findings += [Finding("run", "information", f"not audited: {reason}", subject=run.name) for run, reason in runs.incomplete]
    return Audit(folder, (*(finding for own in audited.values() for finding in own), *findings))


def audit_cohort(cohort: PreparedCohort, *, progress: Progress = silent) -> tuple[Finding, ...]:
    """Do every check that needs no run.

    Args:
        cohort: The prepared cohort.
        progress: Shows how far it is.

    Returns:
        One finding for each check.
    """
    shown: list[Thumbnails] = []
    colors: dict[str, SectionColors] = {}
    registrations: list[Registration] = []
    for section in progress(cohort.sections, "reading patches", len(cohort.sections)):
        patches = cohort.patches(section)
        shown.append(Thumbnails(section, thumbnails(patches)))
        radii = sorted({max(1, cohort.window_px // share) for share in (16, 8, 4)})
        xy_um = cohort.spots(section)[["x_um", "y_um"]].to_numpy()
        colors[section] = SectionColors(color_features(patches, radii), xy_um)
        registrations.append(section_registration(cohort, section, patches))
    findings = (
        *duplicate_findings(cohort, shown, progress=progress),
        registration_finding(registrations),
        identity_finding(colors),
    )
    return tuple(replace(finding, subject=f"cohort {cohort.name}") for finding in findings)


def duplicate_findings(
    cohort: PreparedCohort, shown: Sequence[Thumbnails], *, progress: Progress = silent
) -> tuple[Finding, ...]:
    """Look for patients, sections, spots and patches that are in a cohort twice.

    Args:
        cohort: The prepared cohort.
        shown: Thumbnails of its sections.
        progress: Shows how far it is.
    """
    identical = identical_counts(cohort, cohort.sections)
    alike = alike_expression(cohort, cohort.sections, progress=progress)
    same_patches, n_blank = duplicate_patches(cohort, shown, progress=progress)
    evidence = {"identical counts": identical, "nearly the same expression": alike, "the same patches": same_patches}
    return (
        check_patient_names(cohort.patients),
        check_sections(cohort, evidence),
        check_barcodes(repeated_barcodes(cohort, cohort.sections)),
        check_spots(cohort, identical),
        check_patches(cohort, same_patches, n_blank),
    )


def registration_finding(found: Sequence[Registration]) -> Finding:
    """Judge how sections lie on their images; a misplaced one is a flag."""
    details: Mapping[str, Any] = {one.section: _plain(asdict(one)) for one in found}
    unjudged = [one for one in found if not one.judged]
    why = "; ".join(f"{one.section}: {one.reason or 'color predicts expression no better than chance'}" for one in unjudged)
    limits = f"; not judged: {why}" if unjudged else ""
    off = [one for one in found if one.off]
    if off:
        words = "; ".join(
            f"{one.section}: color {one.shift[0]:+g} pitches in x, {one.shift[1]:+g} in y ({one.pitch_um:.0f} um each) from "
            f"its spots predicts their expression with r {one.there:.3f}, color at the spots with {one.here:.3f}"
            for one in off
        )
        sentence = f"{len(off)} sections seem to be misplaced on their image: {words}{limits}; compare qc/ and the spot files"
        return Finding("registration", "flag", sentence, details)
    judged = [one for one in found if one.judged]
    if not judged:
        return Finding("registration", "information", f"not done: {why}", details)
    r = ", ".join(f"{one.section} {one.here:.2f}" for one in judged)
    sentence = f"color predicts expression best at the spots themselves, in {len(judged)} of {len(found)} sections (r: {r})"
    return Finding("registration", "passed", sentence + limits, details)


def identity_finding(colors: Mapping[str, SectionColors]) -> Finding:
    """Say how well sections are told apart; never a flag."""
    found = section_identity(colors)
    if found is None:
        return not_done("identity", "it takes two sections of some spots to tell apart")
    sentence = (
        f"color alone puts {found.accuracy:.0%} of the spots into their section (chance {found.chance:.0%}, p = {found.p:.3f}, "
        "blocks permuted); scores that pool sections reward that, scores within sections do not"
    )
    return Finding("identity", "information", sentence, _plain(asdict(found)))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values: what is undefined becomes null."""
    return {key: None if isinstance(own, float) and np.isnan(own) else own for key, own in values.items()}
