import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml
from PIL import Image

from stexpr.config import PrepareConfig
from stexpr.data import hest
from stexpr.data.cards import DataCard, load_card
from stexpr.data.prepare import STAGING, prepare
from stexpr.data.store import PreparedCohort
from stexpr.errors import CardError, ConfigError, DataError, GeneError

GENES = [f"ENSG{i:011d}" for i in range(12)]
SETTINGS = {"mpp": 2.0, "window_px": 32, "min_counts": 5}
HEIGHT, WIDTH = 500, 640


def paint(seed: int, tint: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    tissue = (columns - 330) ** 2 / 1.6 + (rows - 250) ** 2 < 200**2
    amount = rng.gamma(2.0, 0.3 * tint, (HEIGHT, WIDTH, 2)) * tissue[..., None]
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    light = 243 * np.exp(-(amount @ stains)) + rng.normal(0, 1, (HEIGHT, WIDTH, 3))
    return np.clip(light, 0, 255).astype(np.uint8)


def write_section(folder: Path, name: str, seed: int, *, genes=GENES, tint=1.0) -> None:
    """A section of 7 x 5 spots, 80 px apart; the outermost are too near the edge for a patch of 64 px."""
    rng = np.random.default_rng(seed)
    places = np.array([(x, y) for y in range(20, 500, 110) for x in range(20, 640, 100)], dtype=float)
    counts = rng.poisson(3, (len(places), len(genes))).astype(np.float32)
    counts[8] = 0
    counts[8, 0] = 2
    obs = pd.DataFrame({"in_tissue": 1}, index=[f"{i}x1" for i in range(len(places))])
    obs.iloc[9, 0] = 0
    spots = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(genes)))
    spots.obsm["spatial"] = places
    spots.write_h5ad(folder / f"{name}.h5ad")
    Image.fromarray(paint(seed, tint)).save(folder / f"{name}.png")


def write_card(folder: Path, sections: dict[str, str], **changes) -> DataCard:
    entries = [
        {
            "section": name,
            "patient": patient,
            "counts": f"{name}.h5ad",
            "image": f"{name}.png",
            "mpp": 1.0,
            "mpp_source": "made",
        }
        for name, patient in sections.items()
    ]
    values = {
        "name": "toy", "species": "human", "tissue": "breast", "technology": "ST", "gene_namespace": "ensembl",
        "reader": "h5ad", "spot_diameter_um": 100.0, "sections": entries, **changes,
    }  # fmt: skip
    path = folder / "toy.md"
    path.write_text(f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n")
    return load_card(path)


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed, (name, tint) in enumerate({"A1": 1.0, "A2": 0.6, "B1": 1.3}.items()):
        write_section(folder, name, seed, tint=tint)
    return folder


@pytest.fixture
def card(source) -> DataCard:
    return write_card(source, {"A1": "al", "A2": "al", "B1": "bea"})


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cohort"


def run(card, source, target, **settings) -> PreparedCohort:
    return prepare(card, source, target, PrepareConfig(**{**SETTINGS, **settings}))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """File -> (inode, modification time): a file written again differs even if its bytes do not."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_prepared_cohort_holds_what_the_raw_files_hold(card, source, target):
    cohort = run(card, source, target)
    assert cohort.sections == ("A1", "A2", "B1")
    assert cohort.patients == ("al", "bea")
    assert cohort.genes == tuple(GENES)
    cohort.verify()
    raw = anndata.read_h5ad(source / "A1.h5ad")
    spots = cohort.spots("A1")
    assert (cohort.counts("A1") != raw[list(spots.index)].X).nnz == 0
    np.testing.assert_array_equal(spots["library"], raw[list(spots.index)].X.sum(1).A1)
    np.testing.assert_array_equal(spots[["x_px", "y_px"]], raw[list(spots.index)].obsm["spatial"])
    assert spots["tissue_fraction"].max() > 0.95
    assert spots["tissue_fraction"].min() < 0.3
    assert not (target / STAGING).exists()


def test_every_spot_is_kept_or_counted_under_one_reason(card, source, target):
    cohort = run(card, source, target, min_tissue=0.5)
    entry = cohort.manifest.sections[0]
    raw = anndata.read_h5ad(source / "A1.h5ad")
    assert entry.n_spots + sum(entry.left_out.values()) == raw.n_obs
    assert list(entry.left_out) == [
        "fewer than 5 counts", "not in tissue", "patch not wholly inside the image", "less than 50% tissue in the patch",
    ]  # fmt: skip
    assert entry.left_out["fewer than 5 counts"] == 1
    assert entry.left_out["not in tissue"] == 1
    places = raw.obsm["spatial"]
    outside = ((places < 32) | (places + 32 > (WIDTH, HEIGHT))).any(1)
    assert entry.left_out["patch not wholly inside the image"] == outside.sum()
    metadata = json.loads((target / "metadata" / "A1.json").read_text())
    assert metadata["left_out"] == entry.left_out
    assert {reason: len(names) for reason, names in metadata["dropped_barcodes"].items()} == entry.left_out
    assert metadata["dropped_barcodes"]["fewer than 5 counts"] == ["8x1"]
    assert (cohort.spots("A1")["tissue_fraction"] >= 0.5).all()
    assert metadata["pixel_size_um_estimated"] == 1.0


def test_at_the_native_resolution_patches_are_the_image_itself(card, source, target):
    cohort = run(card, source, target, mpp=1.0, window_px=40)
    image = np.asarray(Image.open(source / "A1.png"))
    with h5py.File(target / "patches" / "A1.h5") as file:
        coords = file["coords"][:]
    spots = cohort.spots("A1")
    np.testing.assert_array_equal(coords + 20, spots[["x_px", "y_px"]])
    expected = [image[y : y + 40, x : x + 40] for x, y in coords]
    np.testing.assert_array_equal(cohort.patches("A1"), np.stack(expected))


def test_patches_are_reduced_without_aliasing(card, source, target):
    """A one-pixel checkerboard holds nothing at half the resolution: subsampled it stays black and white, averaged gray."""
    image = np.asarray(Image.open(source / "A1.png")).copy()
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image[208:272, 188:252] = board[..., None]
    Image.fromarray(image).save(source / "A1.png")
    cohort = run(card, source, target)
    spot = list(cohort.spots("A1")[["x_px", "y_px"]].itertuples(index=False, name=None)).index((220.0, 240.0))
    inner = cohort.patches("A1", 24)[spot].astype(int)
    assert np.abs(inner - 127).max() <= 3


def test_upsampled_patches_are_allowed_and_noted(card, source, target):
    cohort = run(card, source, target, mpp=0.5, window_px=64)
    assert "upsampled from 1 to 0.5 um/px" in cohort.manifest.sections[0].notes[0]
    assert json.loads((target / "metadata" / "A1.json").read_text())["notes"] == list(cohort.manifest.sections[0].notes)
    assert run(card, source, target.with_name("fine")).manifest.sections[0].notes == ()


def test_the_files_are_hests(card, source, target):
    run(card, source, target)
    spots = anndata.read_h5ad(target / "st" / "A1.h5ad")
    hest = spots.uns["spatial"]["ST"]
    thumbnail = hest["images"]["downscaled_fullres"]
    assert thumbnail.shape == (HEIGHT, WIDTH, 3)
    assert hest["scalefactors"]["tissue_downscaled_fullres_scalef"] == 1.0
    assert hest["scalefactors"]["spot_diameter_fullres"] == 100.0
    assert sp.isspmatrix_csr(spots.X) or isinstance(spots.X, sp.csr_array)
    with h5py.File(target / "patches" / "A1.h5") as file:
        assert file["img"].chunks is None
        assert [barcode.decode() for barcode in file["barcode"][:].ravel()] == list(spots.obs_names)
    assert {"library", "tissue_fraction", "in_tissue"} <= set(spots.obs)
    with Image.open(target / "qc" / "A1.png") as picture:
        assert max(picture.size) <= 1400


@pytest.mark.parametrize("kind", ["macenko", "reinhard"])
def test_stain_brings_sections_to_the_reference(card, source, target, kind):
    plain = run(card, source, target)
    brought = run(card, source, target.with_name(kind), stain=kind, stain_reference="A1")

    def color(cohort, section):
        patches = cohort.patches(section)[cohort.spots(section)["tissue_fraction"].to_numpy() > 0.99]
        return patches.mean((0, 1, 2))

    before = np.abs(color(plain, "A2") - color(plain, "A1")).max()
    after = np.abs(color(brought, "A2") - color(brought, "A1")).max()
    assert before > 15
    assert after < 0.4 * before
    assert brought.manifest.stain_reference == "A1"
    assert brought.hash != plain.hash
    metadata = json.loads((target.with_name(kind) / "metadata" / "A2.json").read_text())
    assert metadata["stain"]["kind"] == kind


def test_preparing_twice_gives_the_same_hash_and_bytes(card, source, target):
    first, second = run(card, source, target), run(card, source, target.with_name("again"))
    assert first.hash == second.hash
    assert first.manifest == second.manifest


def test_a_re_run_writes_nothing(card, source, target):
    run(card, source, target)
    before = snapshot(target)
    run(card, source, target)
    assert snapshot(target) == before


def changed(before, after) -> set[str]:
    return {Path(name).stem for name in after if after[name] != before.get(name) and name != "cohort.json"}


def test_a_re_run_makes_only_what_changed(card, source, target):
    first = run(card, source, target)
    before = snapshot(target)
    write_section(source, "A2", seed=99)
    second = run(card, source, target)
    after = snapshot(target)
    assert changed(before, after) == {"A2"}
    assert first.hash != second.hash

    (target / "patches" / "B1.h5").unlink()
    third = run(card, source, target)
    assert changed(after, snapshot(target)) == {"B1"}
    assert third.hash == second.hash

    before = snapshot(target)
    data = bytearray((target / "patches" / "A1.h5").read_bytes())
    data[-1] ^= 255
    (target / "patches" / "A1.h5").write_bytes(data)
    run(card, source, target).verify()
    assert changed(before, snapshot(target)) == {"A1"}

    before = snapshot(target)
    run(card, source, target, window_px=24)
    assert changed(before, snapshot(target)) == {"A1", "A2", "B1"}


def test_a_reworded_card_rewrites_the_manifest_only(card, source, target):
    first = run(card, source, target)
    before = snapshot(target)
    second = run(card.model_copy(update={"citation": "somewhere else"}), source, target)
    assert second.manifest.citation == "somewhere else"
    assert second.hash == first.hash
    assert changed(before, snapshot(target)) == set()


def test_a_section_that_left_the_card_leaves_the_cohort(card, source, target):
    run(card, source, target)
    before = snapshot(target)
    cohort = run(card.model_copy(update={"sections": card.sections[1:]}), source, target)
    assert cohort.sections == ("A2", "B1")
    assert not list(target.rglob("A1.*"))
    assert changed(before, snapshot(target)) == set()


def test_a_failing_section_leaves_the_old_cohort_whole(card, source, target):
    run(card, source, target)
    before = snapshot(target)
    write_section(source, "A1", seed=7)
    bad = anndata.read_h5ad(source / "B1.h5ad")
    bad.obsm["spatial"] = bad.obsm["spatial"] + 10_000
    bad.write_h5ad(source / "B1.h5ad")
    with pytest.raises(DataError, match=r"B1 has no spot left \(.*patch not wholly inside the image: 33\)") as caught:
        run(card, source, target)
    assert "while preparing section B1 of patient bea" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = {name: entry for name, entry in snapshot(target).items() if not name.startswith(STAGING)}
    assert kept == before
    PreparedCohort.open(target).verify()
    # A1, staged before the failure, is not made twice.
    staged = snapshot(target)[f"{STAGING}/patches/A1.h5"]
    write_section(source, "B1", seed=2)
    run(card, source, target)
    assert snapshot(target)["patches/A1.h5"] == staged
    assert not (target / STAGING).exists()


@pytest.mark.parametrize(
    ("step", "over_an_older_cohort"), [("section", False), ("move", False), ("move", True), ("manifest", True)]
)
def test_a_killed_run_is_completed_by_the_next(card, source, target, step, over_an_older_cohort, tmp_path):
    """Kill -9 when two sections are staged, while files move into place, or before the manifest is written."""
    if over_an_older_cohort:
        run(card, source, target)
        for name in ("A1", "B1"):
            write_section(source, name, seed=50)
    code = KILLED.format(step=step, source=str(source), target=str(target), settings=SETTINGS)
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    found = run(card, source, target)
    found.verify()
    assert found.manifest == run(card, source, tmp_path / "expected").manifest
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert names == {"cohort.json", *(name for entry in found.manifest.sections for name in entry.files)}


KILLED = """
import os, signal
from pathlib import Path
from stexpr.config import PrepareConfig
from stexpr.data import prepare as module
from stexpr.data.cards import load_card

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

calls = 0
def after_three(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        return die() if calls == 3 else real(*args, **kwargs)
    return call

if {step!r} == "manifest":
    module.write_manifest = die
elif {step!r} == "section":
    module.write_section = after_three(module.write_section)
    calls = 1
else:
    class Moving:
        replace = staticmethod(after_three(os.replace))
    module.os = Moving
source = Path({source!r})
module.prepare(load_card(source / "toy.md"), source, Path({target!r}), PrepareConfig(**{settings!r}))
"""


def test_genes_follow_the_rule_of_the_card(source, target):
    write_section(source, "B1", seed=2, genes=[*GENES[:-1], "ENSG99999999999"])
    sections = {"A1": "al", "B1": "bea"}
    with pytest.raises(GeneError):
        run(write_card(source, sections), source, target)
    assert not (target / "cohort.json").exists()
    cohort = run(write_card(source, sections, absent_genes="zero"), source, target)
    assert cohort.genes == (*GENES, "ENSG99999999999")
    assert cohort.counts("A1")[:, -1].nnz == 0
    assert cohort.counts("B1")[:, -2].nnz == 0
    before = cohort.spots("B1")["library"]
    common = run(write_card(source, sections, absent_genes="intersect"), source, target)
    assert common.genes == tuple(GENES[:-1])
    assert sum(common.manifest.genes_left_out.values()) == 2
    # The library stays that of the whole file, also where a gene is off the axis.
    pd.testing.assert_series_equal(common.spots("B1")["library"], before)


def test_folders_that_are_something_else_are_refused(card, source, target, tmp_path):
    target.mkdir()
    (target / "thesis.docx").write_text("precious")
    with pytest.raises(DataError, match=r"holds 'thesis.docx' and no cohort.json"):
        run(card, source, target)
    with pytest.raises(DataError, match="is a file; name a folder"):
        run(card, source, target / "thesis.docx")
    with pytest.raises(DataError, match=r"and no cohort\.json"):
        run(card, source, source)
    other = tmp_path / "other"
    run(card, source, other)
    with pytest.raises(DataError, match=r"is cohort 'toy', not 'else'; choose another folder"):
        run(card.model_copy(update={"name": "else"}), source, other)
    (other / "cohort.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        run(card, source, other)


def test_wrong_requests_are_refused_before_any_work(card, source, target):
    with pytest.raises(ConfigError, match=r"stain_reference 'A9' is no section of toy"):
        run(card, source, target, stain="macenko", stain_reference="A9")
    with pytest.raises(CardError, match="lists no sections"):
        run(card.model_copy(update={"sections": ()}), source, target)
    twice = card.model_copy(update={"sections": (card.sections[0], card.sections[0])})
    with pytest.raises(CardError, match="section names must differ"):
        run(twice, source, target)
    (source / "A2.png").unlink()
    with pytest.raises(DataError, match=r"section A2 of patient al lacks its file .*A2\.png"):
        run(card, source, target)
    assert not target.exists()


def test_a_section_that_cannot_be_read_is_named(card, source, target):
    file = anndata.read_h5ad(source / "A2.h5ad")
    file.X.data[0] = -1
    file.write_h5ad(source / "A2.h5ad")
    with pytest.raises(DataError, match=r"not counts, such as -1 .*while reading section A2 of patient al") as caught:
        run(card, source, target)
    assert "\n" not in str(caught.value)


def test_a_full_disk_names_the_folder(card, source, target, monkeypatch):
    run(card, source, target)
    before = snapshot(target)
    write_section(source, "A1", seed=7)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    with pytest.raises(DataError, match=r"cannot write into .*patches: No space left on device"):
        run(card, source, target)
    monkeypatch.undo()
    assert {name: value for name, value in snapshot(target).items() if not name.startswith(STAGING)} == before
    PreparedCohort.open(target).verify()


def test_a_folder_that_cannot_be_made_is_named(card, source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write into .*file/cohort/.*Not a directory"):
        run(card, source, tmp_path / "file" / "cohort")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_named(card, source, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot write into"):
        run(card, source, closed / "cohort")


def test_one_image_is_in_memory_at_a_time(card, source, target, monkeypatch):
    open_now: set[str] = set()
    most = 0
    from stexpr.data.images import SlideImage

    real_read, real_close = SlideImage._resampled, SlideImage.close

    def read(self, *args):
        nonlocal most
        open_now.add(str(self.path))
        most = max(most, len(open_now))
        return real_read(self, *args)

    def close(self):
        open_now.discard(str(self.path))
        real_close(self)

    monkeypatch.setattr(SlideImage, "_resampled", read)
    monkeypatch.setattr(SlideImage, "close", close)
    run(card, source, target, stain="reinhard", stain_reference="B1")
    assert most == 1
    assert not open_now


@pytest.mark.real
def test_mob_prepares_at_its_own_resolution(shared_data, tmp_path):
    card = load_card("mob")
    assert card.prepare is not None
    cohort = prepare(card.model_copy(update={"sections": card.sections[:1]}), shared_data / "mob", tmp_path, card.prepare)
    entry = cohort.manifest.sections[0]
    assert entry.n_spots == 379
    assert cohort.patches(entry.section).shape == (379, 256, 256, 3)
    assert cohort.mpp == pytest.approx(entry.level0_mpp)
    with Image.open(shared_data / "mob" / "MOB1.jpg") as file:
        image = np.asarray(file)
    with h5py.File(tmp_path / "patches" / f"{entry.section}.h5") as file:
        coords = file["coords"][:]
        for (x, y), patch in zip(coords, file["img"], strict=True):
            np.testing.assert_array_equal(patch, image[y : y + 256, x : x + 256])
    centers = cohort.spots(entry.section)[["x_px", "y_px"]].to_numpy()
    assert np.abs(coords + 128 - centers).max() <= 0.5
    assert cohort.spots(entry.section)["library"].min() >= card.prepare.min_counts


@pytest.mark.real
def test_her2st_sections_of_two_scales_match(shared_data, tmp_path):
    """A1 lies at 3.44 um/px and C3 at 0.73: prepared, a spot covers as many pixels in both, and the inset of A1 is gone."""
    card = load_card("her2st")
    assert card.prepare is not None
    some = tuple(entry for entry in card.sections if entry.section in ("A1", "C3"))
    cohort = prepare(card.model_copy(update={"sections": some}), shared_data / "her2st", tmp_path, card.prepare)
    metadata = {name: json.loads((tmp_path / "metadata" / f"{name}.json").read_text()) for name in ("A1", "C3")}
    for name, entry in zip(("A1", "C3"), cohort.manifest.sections, strict=True):
        assert metadata[name]["patch_side_level0_px"] * entry.level0_mpp == pytest.approx(cohort.mpp * cohort.window_px)
        assert entry.n_spots > 150
        assert cohort.patches(name).shape[1:] == (cohort.window_px, cohort.window_px, 3)
    spots = cohort.spots("A1")
    assert spots["tissue_fraction"].median() > 0.95


def test_patches_are_written_alike_a_few_at_a_time(tmp_path, monkeypatch):
    patches = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    found = []
    for block_bytes in (1, 500, 10**6):
        monkeypatch.setattr(hest, "_BLOCK_BYTES", block_bytes)
        path = tmp_path / f"{block_bytes}.h5"
        digest = hest.write_patches(path, iter(patches), np.zeros((7, 2)), list("abcdefg"), window_px=8, side=8.0)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["img"][:], patches)
        found.append(digest)
    assert set(found) == {hashlib.sha256(patches.tobytes()).hexdigest()}
