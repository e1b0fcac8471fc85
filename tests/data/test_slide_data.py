"""Slide studies read their tables and bags: everybody who is left out is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from slide_cohorts import GENES, slide_study, write_cohort
from stexpr.config import resource_folder
from stexpr.config.any_study import any_study_of, load_any_study
from stexpr.config.slides import SlideStudyConfig
from stexpr.config.sweep import load_sweep
from stexpr.data.bags import BagRows, write_bag
from stexpr.data.patch_labels import read_patch_labels
from stexpr.data.slide_data import SlideData, open_slide_data
from stexpr.data.slide_examples import SlideExamples, classes_of, sampled, target_rows
from stexpr.errors import ConfigError, DataError, DataWarning

MUTATIONS = {"kind": "binary", "columns": ["*_mut"]}
KI67 = {"kind": "fraction", "column": "KI67"}
OS = {"kind": "survival", "event": "OS"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=20)


def opened(folder: Path, *targets: dict[str, Any], **changes: Any) -> SlideData:
    return open_slide_data(slide_study(folder, *targets, **changes))


def altered(folder: Path, source: Path, table: str, change: Any) -> Path:
    """Copy a cohort with another table; the bags stay where they are."""
    folder.mkdir()
    (folder / "bags").symlink_to(source / "bags")
    for name in ("clinical", "slides"):
        frame = pd.read_csv(source / f"{name}.csv", dtype=str, keep_default_na=False)
        (change(frame) if name == table else frame).to_csv(folder / f"{name}.csv", index=False)
    return folder


def cells(column: str, values: Any) -> Any:
    return lambda frame: frame.assign(
        **{column: values if isinstance(values, str) else [*values, *frame[column][len(values) :]]}
    )


def test_targets_slides_and_whoever_is_left_out(cohort: Path) -> None:
    data = opened(cohort, MUTATIONS, KI67, OS)
    assert [columns.names for columns in data.columns] == [("A_mut", "N_mut"), ("KI67",), ("OS",)]
    assert "2 patients are True" in data.left_out["RARE_mut"]
    assert len(data.patients) == 20
    assert data.cohort.slides_of["P000"] == ("P000-1", "P000-2")
    assert data.site_of["P009"] == "S1"
    assert data.cells("site", ["P001"]) == ["S1"]
    assert data.cells("SEX", ["P001"])[0] in ("F", "M")
    assert "without label on 1 target (A_mut)" in data.describe()
    with pytest.raises(DataError, match="no clinical table has a column 'AGEE'; did you mean 'AGE'"):
        data.cells("AGEE", ["P001"])


def test_equal_data_have_equal_hashes(cohort: Path, tmp_path: Path) -> None:
    same = altered(tmp_path / "same", cohort, "clinical", cells("AGE", "99"))
    other = altered(tmp_path / "other", cohort, "clinical", cells("KI67", ["0.5"]))
    first = opened(cohort, KI67)
    assert opened(same, KI67).hash == first.hash
    assert opened(other, KI67).hash != first.hash
    assert opened(same, KI67).store.hash == first.store.hash


@pytest.mark.parametrize(
    ("target", "column", "values", "words"),
    [
        (KI67, "KI67", ["35"], "set percent"),
        (KI67, "KI67", ["-0.1"], "no fraction"),
        ({"kind": "ordinal", "column": "GRADE", "order": ["G1", "G2"]}, "GRADE", ["G3"], "has G3, which is not in order"),
        ({"kind": "binary", "columns": ["A_mut"]}, "A_mut", ["maybe"], "neither of MUT/WT"),
        ({"kind": "binary", "columns": ["A_mut"]}, "A_mut", ["MUT"] * 20, "is True in all"),
        (OS, "OS", ["0"] * 20, "no events"),
        (OS, "OS.time", ["-3"], "not above 0"),
        ({"kind": "multiclass", "column": "SUBTYPE"}, "SUBTYPE", ["x"] * 19 + ["y"], "1 patients are y"),
        ({"kind": "binary", "columns": ["?_gone"]}, "A_mut", ["WT"], "no column of .* is like"),
    ],
)
def test_what_cannot_be_learned_is_refused_by_name(
    cohort: Path, tmp_path: Path, target: dict[str, Any], column: str, values: list[str], words: str
) -> None:
    folder = altered(tmp_path / "c", cohort, "clinical", cells(column, values))
    with pytest.raises(DataError, match=words):
        opened(folder, target)


def test_doubtful_times_are_warned_of(cohort: Path, tmp_path: Path) -> None:
    with pytest.warns(DataWarning, match="is the column flipped"):
        opened(altered(tmp_path / "a", cohort, "clinical", cells("OS", ["1"] * 20)), OS)
    with pytest.warns(DataWarning, match="time 0"):
        opened(altered(tmp_path / "b", cohort, "clinical", cells("OS.time", ["0"])), OS)


def test_slides_without_bag_or_row_are_named(cohort: Path, tmp_path: Path) -> None:
    data = opened(altered(tmp_path / "c", cohort, "slides", lambda frame: frame.iloc[1:].assign()), KI67)
    assert data.cohort.without_row == ("P000-1",)
    gone = altered(tmp_path / "d", cohort, "slides", cells("FILENAME", ["elsewhere"]))
    assert opened(gone, KI67).cohort.without_bag == ("elsewhere",)
    twice = altered(tmp_path / "e", cohort, "slides", cells("FILENAME", ["P001-1"]))
    with pytest.raises(DataError, match=r"P001-1.* more than once"):
        opened(twice, KI67)


def test_a_percentage_is_made_a_fraction(cohort: Path, tmp_path: Path) -> None:
    folder = altered(tmp_path / "c", cohort, "clinical", lambda frame: frame.assign(KI67=frame["KI67"].astype(float) * 100))
    data = opened(folder, {**KI67, "percent": True})
    values = target_rows(data.columns[0], data, data.patients)
    plain = opened(cohort, KI67)
    torch.testing.assert_close(values, target_rows(plain.columns[0], plain, plain.patients))


def test_labels_as_objectives_want_them(cohort: Path) -> None:
    grade = {"kind": "ordinal", "column": "GRADE", "order": ["G1", "G2", "G3"]}
    data = opened(
        cohort,
        MUTATIONS,
        grade,
        OS,
        {"kind": "multiclass", "column": "SUBTYPE"},
        {"kind": "continuous", "columns": ["SIGNATURE"]},
        protocol={"min_positives": 1},
    )
    yes, places, survival, subtype, signature = (target_rows(columns, data, data.patients) for columns in data.columns)
    assert yes.shape == (20, 3)
    assert bool(yes[3, 0].isnan())
    assert classes_of(data.columns[1], data) == ("G1", "G2", "G3")
    assert set(places.tolist()) <= {0, 1, 2}
    assert survival.shape == (20, 2)
    assert survival[:, 1].unique().tolist() == [0.0, 1.0]
    assert subtype.dtype == torch.int64
    assert signature.shape == (20, 1)


def test_bags_are_read_alike_from_memory_and_from_disk(cohort: Path) -> None:
    data = opened(cohort, KI67)
    targets = [target_rows(columns, data, data.patients) for columns in data.columns]
    device = torch.device("cpu")
    for seen in ("features", "expression", "both", "color"):
        disk, memory = (SlideExamples(data, seen, targets, memory_bytes=size) for size in (0.0, 1e9))
        rows = torch.tensor([0, 4])
        one, other = (examples.batch(rows, device) for examples in (disk, memory))
        assert len(one.bags) == 2
        for a, b in zip(one.bags, other.bags, strict=True):
            assert torch.equal(a.read(), b.read())
            assert len(a) == len(a.read())
        for a, b in zip(disk.moments(rows), memory.moments(rows), strict=True):
            torch.testing.assert_close(a, b)
        assert disk.width == {"features": 8, "expression": 3, "both": 11, "color": 5}[seen]
    assert data.store.genes == GENES
    apart = SlideExamples(data, "features", targets, together=False).batch(torch.tensor([0, 4]), device)
    assert apart.patient.tolist() == [0, 0, 1]
    together = SlideExamples(data, "features", targets).batch(torch.tensor([0]), device)
    assert torch.equal(together.bags[0].read(), torch.cat([bag.read() for bag in apart.bags[:2]]))


def test_drawn_patches_are_some_of_the_bag(cohort: Path) -> None:
    data = opened(cohort, KI67)
    examples = SlideExamples(data, "features", [target_rows(data.columns[0], data, data.patients)], memory_bytes=1e4)
    batch = examples.batch(torch.arange(4), torch.device("cpu"))
    drawn = sampled(batch, 5, torch.Generator().manual_seed(0))
    again = sampled(batch, 5, torch.Generator().manual_seed(0))
    for whole, part, same in zip(batch.bags, drawn.bags, again.bags, strict=True):
        rows, all_rows = part.read(), whole.read()
        assert len(part) == len(rows) == 5
        assert torch.equal(rows, same.read())
        assert all(bool((all_rows == row).all(dim=1).any()) for row in rows)
        assert len(rows.unique(dim=0)) == 5
    assert all(
        len(bag) == len(whole) for bag, whole in zip(sampled(batch, 10**6, torch.Generator()).bags, batch.bags, strict=True)
    )


def test_each_slide_counts_alike_in_the_moments(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path, patients=10)
    for slide, n, value in (("P000-1", 1, 0.0), ("P001-1", 9, 2.0)):
        rows = BagRows(np.full((n, 8), value, dtype=np.float32), np.zeros((n, 2), dtype=np.int64))
        write_bag(folder / "bags" / f"{slide}.h5", [rows], mpp=1.0, patch_px=64, side=64.0, encoder="drawn")
    data = opened(write_tables(folder, ["P000-1", "P001-1"]), {**KI67})
    mean, sd = SlideExamples(data, "features", []).moments(torch.tensor([0, 1]))
    torch.testing.assert_close(mean, torch.ones(8))
    torch.testing.assert_close(sd, torch.ones(8))


def write_tables(folder: Path, slides: list[str]) -> Path:
    pd.DataFrame({"PATIENT": [slide[:4] for slide in slides], "FILENAME": slides}).to_csv(folder / "slides.csv", index=False)
    for path in (folder / "bags").glob("*.h5"):
        if path.stem not in slides:
            path.unlink()
    return folder


def test_patch_labels_are_matched_to_patches(cohort: Path, tmp_path: Path) -> None:
    data = opened(cohort, KI67)
    (tmp_path / "P005-1.csv").write_text("x,y,value\n0,0,0.1\n63,63,0.3\n64,10,0.5\n")
    labels = read_patch_labels(tmp_path, data.store.bags)
    found = labels.of(data.store["P005-1"])
    np.testing.assert_allclose(found[:2], [0.2, 0.5], rtol=1e-6)
    assert np.isnan(found[2:]).all()
    assert np.isnan(labels.of(data.store["P002-1"])).all()
    examples = SlideExamples(data, "features", [], labels=labels)
    batch = sampled(examples.batch(torch.tensor([5]), torch.device("cpu")), 3, torch.Generator().manual_seed(1))
    index = batch.bags[0].index  # type: ignore[attr-defined]
    np.testing.assert_array_equal(batch.patch_targets[0].read().numpy(), found[index])
    (tmp_path / "P005-1.csv").write_text("x,y\n0,0\n")
    with pytest.raises(DataError, match="needs the columns x, y, value"):
        read_patch_labels(tmp_path, data.store.bags)
    with pytest.raises(DataError, match="patch labels of none of 22 slides"):
        read_patch_labels(tmp_path / "none", data.store.bags)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": {"split": {"k": 2, "inner_k": 1}}}, "inner_k = 1"),
        ({"tables": {"sites": None}, "protocol": {"split": {"k": 2, "preserve_sites": True}}}, "needs tables.sites"),
        ({"model": {"head": "mean", "patch_labels": "x"}}, "take head=patch_vote"),
        ({"model": {"head": "patch_vote", "covariates": ["AGE"]}}, "take another head"),
        ({"model": {"instances": "color", "finetune": {"encoder": "m"}}}, "take instances=features"),
        ({"model": {"head": "mena"}}, "head"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_impossible_studies_are_refused(cohort: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        slide_study(cohort, KI67, **changes)


def test_cox_asks_for_everybody_in_each_step(cohort: Path) -> None:
    with pytest.raises(ConfigError, match="set it to null"):
        slide_study(cohort, OS, training={"batch_size": 8})
    values = slide_study(cohort, OS).model_dump(mode="json")
    assert any_study_of(values, "again") == slide_study(cohort, OS)


def test_studies_and_sweeps_that_come_with_stexpr_can_be_read() -> None:
    names = sorted(path.stem for path in (resource_folder("configs") / "slides").glob("*.yaml"))
    assert names == ["ki67", "mutation", "survival"]
    for name in names:
        study = load_any_study(name)
        assert isinstance(study, SlideStudyConfig)
        assert study.protocol.name == study.name == name
    assert [study.label for study in load_sweep("ki67").studies] == [
        "patch_vote on bags features, patch labels",
        "patch_vote on bags features",
        "mean on bags features",
        "gated_attention on bags features",
    ]
    assert len(load_sweep("slide_heads").studies) == 21
