"""Slides in folders as archives and scanners lay them out."""

import shutil
from pathlib import Path

import pytest

from stexpr.data.slide_files import find_slides, slide_bytes, slide_hash
from stexpr.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_slides_are_found_wherever_they_lie_and_the_rest_is_counted(tmp_path):
    touch(tmp_path, "a.svs", "0f3c/TCGA-1.abc.svs", "0f3c/logs/x.parcel", "b.ome.tif", "m.mrxs", "m/Data1.dat", "m/view.jpg")
    touch(tmp_path, "scan/1.dcm", "scan/2.DCM", "scan/thumb.png", ".hidden/c.svs", ".d.svs", "README")
    found = find_slides(tmp_path)
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.paths.items()} == {
        "TCGA-1.abc": "0f3c/TCGA-1.abc.svs",
        "a": "a.svs",
        "b.ome": "b.ome.tif",
        "m": "m.mrxs",
        "scan": "scan",
    }
    assert found.ignored == {".parcel": 1, "README": 1}
    assert list(found.paths) == sorted(found.paths)


def test_a_table_chooses_by_name_with_or_without_ending(tmp_path):
    touch(tmp_path, "x/a.svs", "b.ome.tif", "other.svs")
    table = tmp_path / "slides.csv"
    table.write_text("PATIENT,FILENAME\np1,a\np2,b.ome.tif\np3,gone.h5\n")
    found = find_slides(table)
    assert (list(found.paths), found.missing) == (["a", "b.ome"], ("gone",))
    table.write_text("PATIENT,FILENAME\np1,gone\n")
    with pytest.raises(DataError, match=r"none of the 1 slides of .* lies in"):
        find_slides(table)


def test_what_cannot_be_slides_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no slide; slides end in"):
        find_slides(tmp_path)
    with pytest.raises(DataError, match="neither a folder of slides nor a slide table"):
        find_slides(tmp_path / "none")
    touch(tmp_path, "a.svs", "x/a.tif")
    with pytest.raises(DataError, match=r"slide 'a' is the name of 2 files: 2 files \(.*a\.svs, .*a\.tif\); rename"):
        find_slides(tmp_path)


def test_a_slide_is_all_of_its_files_whatever_they_are_called(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Data1.dat", "scan/1.dcm", "scan/2.dcm", "a.svs")
    assert slide_bytes(tmp_path / "m.mrxs") == len("m.mrxs") + len("m/Data1.dat")
    assert slide_bytes(tmp_path / "scan") == 2 * len("scan/1.dcm")
    shutil.copy(tmp_path / "a.svs", tmp_path / "b.svs")
    assert slide_hash(tmp_path / "a.svs") == slide_hash(tmp_path / "b.svs")
    before = slide_hash(tmp_path / "m.mrxs")
    (tmp_path / "m" / "Data1.dat").write_bytes(b"other")
    assert slide_hash(tmp_path / "m.mrxs") != before
    with pytest.raises(DataError, match="cannot read"):
        slide_hash(tmp_path / "none.svs")
