"""Virtual expression of whole slides, from the file of the slide to that of the predictions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from slides import GENES, MPP, WINDOW_PX, slide_pixels, write_slide, write_slide_model
from stexpr.data.synthetic_slide import BLOCK_PX, write_large_slide
from stexpr.data.tiff import TiffRaster
from stexpr.errors import ConfigError, DataError, DomainWarning, GeneError, ModelError, ScaleError
from stexpr.inference.slide import predict_slide
from stexpr.inference.slide_file import most_varied, read_prediction
from stexpr.models.export import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_model(tmp_path_factory.mktemp("ensemble"), networks=2)


@pytest.fixture(scope="module")
def half_foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    pixels = slide_pixels(foreign=True)
    return write_slide(tmp_path_factory.mktemp("slide") / "half.ome.tif", pixels), pixels


def by_hand(model: Path, pixels: np.ndarray, centers: np.ndarray) -> Any:
    corners = np.round(centers - WINDOW_PX / 2).astype(int)
    patches = np.stack([pixels[y : y + WINDOW_PX, x : x + WINDOW_PX] for x, y in corners])
    return load_model(model)(torch.from_numpy(patches).permute(0, 3, 1, 2))


@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_row_is_what_the_model_says_of_the_patch_there(half_foreign, ensemble, tmp_path, batch_size):
    slide, pixels = half_foreign
    done = predict_slide(slide, ensemble, tmp_path / "out.h5ad", features=True, batch_size=batch_size)
    found = done.read()
    assert found.n_obs == len(done.grid) > 100
    assert tuple(found.var_names) == GENES
    direct = by_hand(ensemble, pixels, found.obsm["spatial"])
    np.testing.assert_allclose(found.X, direct.expression, atol=1e-4)
    np.testing.assert_allclose(found.layers["spread"], direct.spread, atol=1e-4)
    np.testing.assert_allclose(found.obsm["X_stexpr"], direct.features, atol=1e-4)
    np.testing.assert_allclose(found.obs["novelty"], direct.novelty, rtol=1e-3)


def test_the_file_says_all_one_needs_to_know(half_foreign, model, tmp_path):
    slide, pixels = half_foreign
    done = predict_slide(slide, model, tmp_path / "out.h5ad", about={"species": "homo sapiens"})
    found = anndata.read_h5ad(done.path, backed="r")
    assert found.obs_names.is_unique
    row, column = (found.obs[key].to_numpy() for key in ("row", "column"))
    steps = np.stack([column - column[0], row - row[0]], axis=1)
    np.testing.assert_allclose(found.obsm["spatial"] - found.obsm["spatial"][0], 32 * steps)
    assert found.obs["tissue_fraction"].between(0.5, 1).all()
    kept = found.obs["applicable"].to_numpy()
    assert done.n_foreign == (~kept).sum()
    np.testing.assert_array_equal(kept, found.obs["novelty"] <= 1)
    np.testing.assert_allclose(found.var["predicted_mean"], found.X[:][kept].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.var["predicted_sd"], found.X[:][kept].std(axis=0), atol=1e-5)
    np.testing.assert_array_equal(found.var["half_width_0.9"], 2.0 * np.arange(1, 7))
    assert set(found.layers) | set(found.obsm) == {"spatial"}  # one network has no spread; features only where asked for
    made = json.loads(found.uns["stexpr"])
    assert (made["mpp"], made["mpp_source"], made["stride_um"], made["abstained"]) == (MPP, "file", 32.0, False)
    assert made["model"]["hash"] == load_model(model).hash
    assert made["grid"]["patches"] + sum(made["grid"]["left_out"].values()) == done.grid.shape[0] * done.grid.shape[1]
    assert made["intervals"].startswith("spot-level, not valid for new patients")
    assert made["versions"]["torch"] == torch.__version__.split("+")[0]
    (entry,) = found.uns["spatial"].values()
    np.testing.assert_array_equal(entry["images"]["downscaled_fullres"], pixels)
    assert entry["scalefactors"] == {"tissue_downscaled_fullres_scalef": 1.0, "spot_diameter_fullres": 32.0}


def test_foreign_tissue_is_flagged_and_on_demand_withheld(half_foreign, model, tmp_path):
    slide, _ = half_foreign
    kept = predict_slide(slide, model, tmp_path / "kept.h5ad").read()
    green = kept.obsm["spatial"][:, 0] > 450 + WINDOW_PX
    purple = kept.obsm["spatial"][:, 0] < 450 - WINDOW_PX
    inside = kept.obs["tissue_fraction"].to_numpy() > 0.99
    assert not kept.obs["applicable"][green & inside].any()
    assert kept.obs["applicable"][purple & inside].mean() > 0.8  # patches at the rim hold some glass
    either = (green | purple) & inside
    assert roc_auc_score(green[either], kept.obs["novelty"][either]) > 0.9
    assert np.isfinite(kept.X).all()
    withheld = predict_slide(slide, model, tmp_path / "withheld.h5ad", abstain=True).read()
    known = kept.obs["applicable"].to_numpy()
    assert np.isnan(withheld.X[~known]).all()
    np.testing.assert_array_equal(withheld.X[known], kept.X[known])
    np.testing.assert_array_equal(withheld.var["predicted_mean"], kept.var["predicted_mean"])


def test_some_genes_of_a_file_and_those_that_vary_most(half_foreign, model, tmp_path):
    done = predict_slide(half_foreign[0], model, tmp_path / "out.h5ad")
    whole = done.read()
    some = done.read(["GENE4", "GENE1"])
    assert some.var_names.tolist() == ["GENE4", "GENE1"]
    np.testing.assert_array_equal(some.X, whole[:, ["GENE4", "GENE1"]].X)
    assert some.obs.equals(whole.obs)
    assert most_varied(done.path, 2) == whole.var["predicted_sd"].nlargest(2).index.tolist()
    with pytest.raises(GeneError, match="did you mean 'GENE1'"):
        read_prediction(done.path, ["GENE11"])


def test_stride_share_of_tissue_and_coverage_are_the_users(half_foreign, model, tmp_path):
    dense = predict_slide(half_foreign[0], model, tmp_path / "a.h5ad", stride_um=16.0, min_tissue=1.0, coverage=0.5).read()
    assert np.diff(np.unique(dense.obsm["spatial"][:, 0])).min() == 16
    assert dense.obs["tissue_fraction"].min() > 0.999
    assert [column for column in dense.var if column.startswith("half_width")] == ["half_width_0.5"]
    (entry,) = dense.uns["spatial"].values()
    assert entry["scalefactors"]["spot_diameter_fullres"] == 16


def test_scale_comes_from_the_file_or_the_user_and_is_never_guessed(model, tmp_path):
    bare = write_slide(tmp_path / "bare.tif", slide_pixels(), mpp=None)
    with pytest.raises(ScaleError, match=r"bare\.tif does not say its microns per pixel; give them \(--mpp\)"):
        predict_slide(bare, model, tmp_path / "out.h5ad")
    done = predict_slide(bare, model, tmp_path / "out.h5ad", mpp=0.5)
    assert done.grid.side == 64
    assert json.loads(done.read().uns["stexpr"])["mpp_source"] == "given"
    with pytest.raises(ScaleError, match="absurd"):
        predict_slide(bare, model, tmp_path / "out.h5ad", mpp=50.0)
    said = write_slide(tmp_path / "said.tif", slide_pixels(), mpp=0.5)
    with pytest.warns(DomainWarning, match=r"the file says 0\.5 um/px, 0\.6 was given and is used"):
        done = predict_slide(said, model, tmp_path / "out.h5ad", mpp=0.6)
    assert done.warnings == tuple(json.loads(done.read().uns["stexpr"])["warnings"])


def test_what_differs_from_the_training_data_is_warned_of(model, tmp_path):
    slide = write_slide(tmp_path / "coarse.tif", slide_pixels(150, 200), mpp=2.0)
    with pytest.warns(DomainWarning) as warned:
        done = predict_slide(slide, model, tmp_path / "out.h5ad", about={"preservation": "FFPE", "species": None})
    assert [str(one.message) for one in warned] == [
        "the image has 2 um/px, coarser than the 1 um/px the model was trained at: the predictions were not tested there",
        "preservation: the image is of FFPE, the model was trained on fresh frozen: the predictions were not tested there",
    ]
    assert len(done.warnings) == 2


def test_what_cannot_be_done_is_refused_before_anything_is_written(half_foreign, model, tmp_path):
    slide, pixels = half_foreign
    output = tmp_path / "out.h5ad"
    output.write_text("an earlier result")
    plain = write_slide_model(tmp_path / "plain", reference=False, intervals=False)
    blank = write_slide(tmp_path / "blank.tif", np.full_like(pixels, 244))
    tiny = write_slide(tmp_path / "tiny.tif", pixels[288:312, 400:500])
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    refused: list[tuple[type[Exception], str, Path, Path, dict[str, Any]]] = [
        (DataError, r"no tissue was found.*\(slide .*blank\.tif, 1 um/px\)", blank, model, {}),
        (DataError, r"100 x 24 px, but one field of view of the model covers 32 x 32", tiny, model, {}),
        (DataError, r"text\.svs", text, model, {}),
        (DataError, r"none\.tif does not exist", tmp_path / "none.tif", model, {}),
        (ModelError, "cannot abstain", slide, plain, {"abstain": True}),
        (ModelError, r"no 0\.9 prediction intervals; export it", slide, plain, {"coverage": 0.9}),
        (ModelError, r"no 0\.8 prediction intervals; it has those of 0\.5, 0\.9", slide, model, {"coverage": 0.8}),
        (ConfigError, "batch of 0", slide, model, {"batch_size": 0}),
        (ConfigError, "stride of -32", slide, model, {"stride_um": -32.0}),
    ]
    for kind, words, path, folder, options in refused:
        with pytest.raises(kind, match=words):
            predict_slide(path, folder, output, **options)
    with pytest.raises(ConfigError, match=r"should end in \.h5ad"):
        predict_slide(slide, model, tmp_path / "out.csv")
    assert output.read_text() == "an earlier result"
    unknown = predict_slide(slide, plain, output)
    assert unknown.n_foreign is None
    assert "novelty" not in unknown.read().obs


def test_a_slide_that_breaks_off_leaves_the_earlier_result(half_foreign, model, tmp_path):
    import tifffile

    broken, output = tmp_path / "broken.ome.tif", tmp_path / "out.h5ad"
    data = bytearray(half_foreign[0].read_bytes())
    with tifffile.TiffFile(half_foreign[0]) as file:
        page = file.pages.first
        for start, length in list(zip(page.dataoffsets, page.databytecounts, strict=True))[80:]:
            data[start : start + length] = b"\x17" * length
    broken.write_bytes(bytes(data))
    output.write_text("an earlier result")
    with pytest.raises(DataError, match=r"broken\.ome\.tif cannot be decoded"):
        predict_slide(broken, model, output)
    assert output.read_text() == "an earlier result"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_reading_grows_with_the_tissue_and_no_tile_is_decoded_twice(tmp_path, monkeypatch):
    model = load_model(write_slide_model(tmp_path / "model", window_px=256))
    decoded: list[tuple[int, int]] = []
    plain = TiffRaster._tile

    def counting(self: TiffRaster, level: int, page: Any, index: int) -> Any:
        if (level, index) not in self._decoded:
            decoded.append((level, index))
        return plain(self, level, page, index)

    monkeypatch.setattr(TiffRaster, "_tile", counting)
    patches, tiles = [], []
    for n_blocks in (1, 2, 4):
        decoded.clear()
        slide = tmp_path / f"{n_blocks}.tif"
        write_large_slide(slide, width=40_000, height=40_000, n_blocks=n_blocks, mpp=0.25)
        done = predict_slide(slide, model, tmp_path / "out.h5ad")
        patches.append(len(done.grid))
        at_full_size = [index for level, index in decoded if level < 2]
        assert len(set(at_full_size)) == len(at_full_size)
        tiles.append(len(at_full_size))
    per_block = (BLOCK_PX / 1024) ** 2
    assert patches == pytest.approx([per_block * n for n in (1, 2, 4)], rel=0.35)
    assert np.diff(tiles) / np.diff(patches) == pytest.approx(tiles[0] / patches[0], rel=0.35)


IN_A_CHILD = """
import sys
from pathlib import Path
import anndata.io, skimage.filters, skimage.morphology
from stexpr.inference.slide import predict_slide
from stexpr.models.export import load_model
def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
folder, model = Path(sys.argv[1]), load_model(sys.argv[2])
before = peak_mb()
for name in ("pyramid", "bare"):
    print(name, len(predict_slide(folder / f"{name}.tif", model, folder / f"{name}.h5ad").grid), peak_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_large_slide_takes_less_than_a_gigabyte(tmp_path):
    model = write_slide_model(tmp_path / "model", window_px=256)
    write_large_slide(tmp_path / "pyramid.tif", width=40_000, height=40_000, n_blocks=9, mpp=0.25)
    write_large_slide(tmp_path / "bare.tif", width=24_576, height=8_192, n_blocks=9, mpp=0.25, levels=False)
    command = [sys.executable, "-c", IN_A_CHILD, str(tmp_path), str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
    for line in done.stdout.splitlines():
        name, patches, peak_mb = line.split()
        assert int(patches) > 100, name
        assert float(peak_mb) < 1000, name  # the levels at full size hold 4.8 and 0.6 GB
