"""Cohorts with every kind of leak and shift planted in their raw files, and clean ones."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from PIL import Image
from planted_sections import MARGIN, PITCH, Raw

from stexpr.data.manifest import read_manifest, stored_file, write_manifest
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError
from stexpr.evaluate.audit.duplicates import MAX_BITS, Thumbnails, perceptual_bits, thumbnails
from stexpr.evaluate.audit.findings import Finding
from stexpr.evaluate.audit.registration import section_registration
from stexpr.evaluate.audit.report import audit, audit_cohort, duplicate_findings, registration_finding

DUPLICATES = ["patient names", "sections", "barcodes", "spots", "patches"]
CLEAN = dict.fromkeys(DUPLICATES, "passed")
TWO = {"a1": "a", "b1": "b"}


def duplicates(cohort: PreparedCohort) -> dict[str, Finding]:
    shown = [Thumbnails(section, thumbnails(cohort.patches(section))) for section in cohort.sections]
    findings = duplicate_findings(cohort, shown)
    assert [finding.check for finding in findings] == DUPLICATES
    return {finding.check: finding for finding in findings}


def severities(findings: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.severity for check, finding in findings.items()}


def as_jpeg(image: np.ndarray) -> np.ndarray:
    """Brighter, with less contrast, and compressed."""
    stream = io.BytesIO()
    Image.fromarray(np.clip(image * 0.9 + 20.0, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))


def rewritten(cohort: Path, section: str, change: Callable[[Path], None]) -> PreparedCohort:
    """Change the counts file of a section behind the back of `prepare`, and make the manifest fit."""
    path = cohort / "st" / f"{section}.h5ad"
    change(path)
    manifest = read_manifest(cohort)
    files = {f"st/{section}.h5ad": stored_file(path)}
    entries = [
        entry.model_copy(update={"files": {**entry.files, **files}}) if entry.section == section else entry
        for entry in manifest.sections
    ]
    write_manifest(cohort, manifest.model_copy(update={"sections": tuple(entries)}))
    return PreparedCohort.open(cohort)


def test_a_clean_cohort_passes_every_check(clean: PreparedCohort):
    report = audit(clean.path)
    assert {f.check: f.severity for f in report.findings} == CLEAN | {"registration": "passed", "identity": "information"}
    assert {finding.subject for finding in report.findings} == {"cohort planted"}
    assert not report.leaks
    assert [row[1] for row in report.rows()] == ["identity", *DUPLICATES, "registration"]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["leaks"] is False


@pytest.mark.parametrize(("patient", "severity"), [("b", "leak"), ("a", "flag")])
def test_a_section_under_two_names(raw: Callable[..., Raw], patient: str, severity: str):
    """Across patients it trains and tests; within one patient it only counts twice."""
    planted = raw({"a1": "a", "twin": patient})
    planted.save("twin", planted.read("a1"))
    planted.save_image("twin", planted.image("a1"))
    cohort = planted.prepared()
    findings = duplicates(cohort)
    assert severities(findings) == CLEAN | {"sections": severity, "spots": severity, "patches": severity}
    assert findings["sections"].details["pairs"][0][:2] == ["a1", "twin"]
    assert "identical counts in 81 of 81 spots" in findings["sections"].sentence
    assert "81 spots with identical counts (81 of them also with one barcode)" in findings["spots"].sentence
    assert findings["patches"].details["overlaps"][0]["n"] == 81


def test_a_section_processed_again_is_a_leak_by_its_expression(raw: Callable[..., Raw]):
    """Other barcodes in another order, some reads lost, another image: no two counts or pixels agree."""
    planted = raw(TWO)
    spots = planted.read("a1")
    rng = np.random.default_rng(0)
    spots = spots[rng.permutation(spots.n_obs)].copy()
    spots.X.data = rng.binomial(spots.X.data.astype(int), 0.98).astype(np.float32)
    spots.obs_names = [f"s{i}" for i in range(spots.n_obs)]
    planted.save("b1", spots)
    findings = duplicates(planted.prepared())
    assert findings["sections"].severity == "leak"
    assert "a1 (patient a) and b1 (patient b): nearly the same expression" in findings["sections"].sentence
    assert findings["patches"].severity == "passed"


def test_one_spot_reused_in_another_patient_is_a_leak(raw: Callable[..., Raw]):
    planted = raw(TWO)
    planted.change_counts("b1", {40: planted.counts("a1")[7]})
    findings = duplicates(planted.prepared())
    assert severities(findings) == CLEAN | {"spots": "leak"}
    assert findings["spots"].details["overlaps"] == [
        {"first": "a1", "second": "b1", "n": 1, "same_barcode": 0, "example": ("0x7", "4x4"), "patients": ("a", "b")}
    ]


def test_one_spot_twice_in_a_section_is_a_flag(raw: Callable[..., Raw]):
    planted = raw(TWO)
    planted.change_counts("b1", {3: planted.counts("b1")[60]})
    findings = duplicates(planted.prepared())
    assert severities(findings) == CLEAN | {"spots": "flag"}
    assert "1 twice in b1 (0x3 = 6x6)" in findings["spots"].sentence


def test_spots_too_shallow_to_differ_are_no_reused_spots(raw: Callable[..., Raw]):
    planted = raw(TWO)
    shallow = np.eye(1, planted.counts("a1").shape[1], 3)[0]
    for section in TWO:
        planted.change_counts(section, {5: shallow})
    assert duplicates(planted.prepared())["spots"].severity == "passed"


@pytest.mark.parametrize(("quarters", "mirrored"), [(0, False), (1, False), (2, True), (3, True)])
def test_an_image_used_for_two_patients_is_a_leak_however_turned(raw: Callable[..., Raw], quarters: int, mirrored: bool):
    planted = raw(TWO)
    image = np.rot90(planted.image("a1"), quarters)
    planted.save_image("b1", as_jpeg(image[:, ::-1] if mirrored else image))
    findings = duplicates(planted.prepared())
    assert severities(findings) == CLEAN | {"patches": "leak", "sections": "leak"}
    assert findings["patches"].details["overlaps"][0]["n"] >= 78
    assert "the same patches in" in findings["sections"].sentence


def test_a_single_patch_in_two_patients_is_a_leak(raw: Callable[..., Raw]):
    planted = raw(TWO)
    image, donor = planted.image("b1").copy(), planted.image("a1")
    y, x = MARGIN + 4 * PITCH - 16, MARGIN + 2 * PITCH - 16
    image[y : y + 32, x : x + 32] = as_jpeg(np.rot90(donor[MARGIN - 16 : MARGIN + 16, MARGIN - 16 : MARGIN + 16]))
    planted.save_image("b1", image)
    findings = duplicates(planted.prepared())
    assert severities(findings) == CLEAN | {"patches": "leak"}
    assert findings["patches"].details["overlaps"] == [
        {"first": "a1", "second": "b1", "n": 1, "same_barcode": 0, "example": ("0x0", "4x2"), "patients": ("a", "b")}
    ]


def test_blank_patches_are_alike_and_no_duplicates(raw: Callable[..., Raw]):
    planted = raw(TWO)
    for section in TWO:
        image = planted.image(section).copy()
        image[: MARGIN + 3 * PITCH] = (120, 60, 130)
        planted.save_image(section, image)
    finding = duplicates(planted.prepared())["patches"]
    assert finding.severity == "passed"
    assert 2 * 27 <= finding.details["blank"] < 2 * 45
    assert f"{finding.details['blank']} blank ones were not compared" in finding.sentence


def test_the_same_black_margin_makes_no_duplicates(raw: Callable[..., Raw]):
    """A background blacked out along one line is the strongest edge of every patch there, and no tissue in common."""
    planted = raw(TWO)
    for section in TWO:
        image = planted.image(section).copy()
        image[:, : MARGIN + PITCH // 4] = 0
        planted.save_image(section, image)
    finding = duplicates(planted.prepared())["patches"]
    assert finding.severity == "passed"
    assert finding.details["blank"] == 0


def test_patients_whose_names_differ_in_case_only_are_flagged(raw: Callable[..., Raw]):
    finding = duplicates(raw({"a1": "Pat 1", "b1": "pat_1", "c1": "pat-11"}).prepared())["patient names"]
    assert finding.severity == "flag"
    assert finding.details["pairs"] == [("Pat 1", "pat_1")]


def test_barcodes_twice_in_a_section_are_a_leak(clean: PreparedCohort, tmp_path: Path):
    """`prepare` refuses such a section; another tool may write one."""

    def repeat(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            names = file["obs"][file["obs"].attrs["_index"]]
            names[4] = names[9]

    shutil.copytree(clean.path, tmp_path / "cohort")
    finding = duplicates(rewritten(tmp_path / "cohort", "b1", repeat))["barcodes"]
    assert finding.severity == "leak"
    assert finding.details == {"b1": ["1x0"]}


def test_sections_shifted_on_their_image_are_flagged(raw: Callable[..., Raw]):
    planted = raw({"a1": "a", "b1": "b", "c1": "c", "d1": "d"})
    moves = {"b1": (1, 0), "c1": (0, -2), "d1": (0.5, 0.5)}
    for section, moved in moves.items():
        spots = planted.read(section)
        spots.obsm["spatial"] = spots.obsm["spatial"] + np.array(moved) * PITCH
        planted.save(section, spots)
    cohort = planted.prepared()
    registrations = [section_registration(cohort, section) for section in cohort.sections]
    assert [one.off for one in registrations] == [False, True, True, True]
    assert [one.shift for one in registrations] == [(0, 0), (-1, 0), (0, 2), (-0.5, -0.5)]
    assert {one.pitch_um for one in registrations} == {PITCH}
    finding = registration_finding(registrations)
    assert finding.severity == "flag"
    assert finding.sentence.startswith("3 sections seem to be misplaced on their image: b1: color -1 pitches in x, +0 in y")


def test_small_patches_are_searched_for_shifts_by_whole_pitches(raw: Callable[..., Raw]):
    """Patches of 32 px at a pitch of 48 px hold no color half a pitch away, but that of their neighbors."""
    planted = raw(TWO, pitch=48)
    spots = planted.read("b1")
    spots.obsm["spatial"] = spots.obsm["spatial"] + np.array([48, 0])
    planted.save("b1", spots)
    cohort = planted.prepared()
    registrations = [section_registration(cohort, section) for section in TWO]
    assert [one.off for one in registrations] == [False, True]
    assert registrations[1].shift == (-1, 0)
    assert registrations[0].n_shifts == 24


def test_a_section_without_a_word_on_registration_is_not_judged(raw: Callable[..., Raw]):
    planted = raw(TWO)
    counts = planted.counts("b1")
    planted.change_counts("b1", dict(enumerate(np.random.default_rng(1).permutation(counts))))
    small = planted.read("a1")
    planted.save("a1", small[:30].copy())
    cohort = planted.prepared()
    finding = registration_finding([section_registration(cohort, section) for section in TWO])
    assert finding.severity == "information"
    assert finding.sentence == (
        "not done: a1: it has 30 spots, fewer than 40; b1: color predicts expression no better than chance"
    )


def test_registration_ignores_the_order_of_spots(raw: Callable[..., Raw]):
    """Half a pitch off, each disc lies between four spots, and any of their patches could show it."""
    planted = raw({"a1": "a"})
    spots = planted.read("a1")
    spots.obsm["spatial"] = spots.obsm["spatial"] + PITCH / 2
    planted.save("a1", spots)
    ordered = section_registration(planted.prepared(), "a1")
    planted.save("a1", spots[np.random.default_rng(0).permutation(spots.n_obs)].copy())
    shuffled = section_registration(planted.prepared(), "a1")
    assert ordered.gain > 0.1
    for value in ("here", "clear", "gain", "there"):
        assert getattr(shuffled, value) == pytest.approx(getattr(ordered, value), abs=1e-6)


def test_a_cohort_of_one_section_has_every_check_reported(raw: Callable[..., Raw]):
    findings = {finding.check: finding for finding in audit_cohort(raw({"a1": "a"}).prepared())}
    assert severities(findings) == CLEAN | {"registration": "passed", "identity": "information"}
    assert findings["identity"].sentence.startswith("not done: it takes two sections")


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"is no prepared cohort .* no finished run"):
        audit(tmp_path)


@pytest.mark.real
def test_the_olfactory_bulb_passes_and_a_shift_in_it_is_seen(mob_cohort: Path, tmp_path: Path):
    cohort = PreparedCohort.open(mob_cohort)
    bits = {section: perceptual_bits(thumbnails(cohort.patches(section))) for section in cohort.sections}
    assert (bits["MOB2"] @ bits["MOB3"].T).max() >= 99 - 2 * MAX_BITS  # hashes alone would call some patches duplicates
    report = audit(mob_cohort)
    assert {f.check: f.severity for f in report.findings} == CLEAN | {"registration": "passed", "identity": "information"}
    registrations = next(finding for finding in report.findings if finding.check == "registration").details
    assert all(values["clear"] > 5 and values["gain"] == 0 for values in registrations.values())

    def move(path: Path) -> None:
        """Hand the counts on to the spot two array columns (1.4 pitches) to the right; patches stay."""
        spots = anndata.read_h5ad(path)
        places = {name: i for i, name in enumerate(spots.obs_names)}
        columns = [name.split("x") for name in spots.obs_names]
        left = [places.get(f"{int(x) - 2}x{y}", i) for i, (x, y) in enumerate(columns)]
        moved = spots.copy()
        moved.X, moved.obs["library"] = spots.X[left], spots.obs["library"].to_numpy()[left]
        moved.write_h5ad(path)

    shutil.copytree(mob_cohort, tmp_path / "mob")
    cohort = rewritten(tmp_path / "mob", "MOB3", move)
    assert section_registration(cohort, "MOB3").off
    assert section_registration(cohort, "MOB3").shift[0] < 0
