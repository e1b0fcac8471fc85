"""`stexpr predict`, run as a person runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest
from PIL import Image

from slides import slide_pixels, write_slide, write_slide_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_model(tmp_path_factory.mktemp("model"))


def test_from_a_slide_to_three_files(stexpr: Run, model: Path, tmp_path: Path):
    write_slide(tmp_path / "half.tif", slide_pixels(300, 450, foreign=True), mpp=1.0)
    asked = ("half.tif", "-m", model, "-o", "new/out.h5ad", "--genes", "GENE3", "--genes", "GENE0", "--features", "--abstain")
    code, out, err = stexpr("predict", *asked, "--preservation", "FFPE", "--device", "cpu")
    assert code == 0, err
    assert err == (
        "stexpr: warning: preservation: the image is of FFPE, the model was trained on fresh frozen: "
        "the predictions were not tested there\n"
    )
    found = anndata.read_h5ad("new/out.h5ad")
    n_foreign = int((~found.obs["applicable"]).sum())
    assert f"half.tif: 6 genes of {found.n_obs} patches; left out: " in out
    assert f"; {n_foreign} foreign, withheld\n" in out
    assert "written to new/out.h5ad, out.geojson and out.png" in out
    assert "X_stexpr" in found.obsm
    features = json.loads(Path("new/out.geojson").read_text())["features"]
    assert len(features) == found.n_obs
    assert "GENE3" in json.dumps(features)
    with Image.open("new/out.png") as picture:
        assert picture.format == "PNG"


def test_without_genes_those_that_vary_most_are_shown(stexpr: Run, tmp_path: Path):
    model = write_slide_model(tmp_path / "plain", reference=False, intervals=False)
    write_slide(tmp_path / "a.tif", slide_pixels(300, 450), mpp=None)
    code, out, err = stexpr("predict", "a.tif", "-m", model, "--mpp", "1", "--stride", "64", "--min-tissue", "0.9")
    assert (code, err) == (0, "")
    assert "foreign ones unknown: the model was exported without its training features" in out
    varied = anndata.read_h5ad("prediction.h5ad").var["predicted_sd"].nlargest(3).index.tolist()
    first = json.loads(Path("prediction.geojson").read_text())["features"][0]
    assert list(first["properties"]["measurements"]) == [*varied, "tissue fraction"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.svs"], "none.svs does not exist"),
        (["bare.tif"], "give them (--mpp)"),
        (["bare.tif", "--mpp", "1", "--genes", "GENE9"], "gene 'GENE9' is not among the 6 the model predicts; did you mean"),
        (
            ["bare.tif", "--mpp", "1", "--coverage", "0.7"],
            "the model has no 0.7 prediction intervals; it has those of 0.5, 0.9",
        ),
        (["bare.tif", "--mpp", "1", "-o", "out.csv"], "should end in .h5ad"),
        (["blank.tif"], "no tissue was found"),
    ],
)
def test_what_is_refused_is_one_line(stexpr: Run, model: Path, tmp_path: Path, arguments: list[str], message: str):
    pixels = slide_pixels(300, 450)
    write_slide(tmp_path / "bare.tif", pixels, mpp=None)
    write_slide(tmp_path / "blank.tif", pixels[:100, :100])
    code, out, err = stexpr("predict", *arguments, "-m", model)
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert message in err
    assert not list(tmp_path.glob("*.h5ad"))


@pytest.mark.real
def test_a_slide_of_a_scanner(stexpr: Run, model: Path, shared_data: Path):
    code, _, err = stexpr(
        "predict", shared_data / "wsi" / "cmu_small_region.svs", "-m", model, "--stride", "100", "--preservation", "FFPE"
    )
    assert code == 0, err
    assert "preservation: the image is of FFPE" in err
    found = anndata.read_h5ad("prediction.h5ad")
    made = json.loads(found.uns["stexpr"])
    assert (made["mpp"], made["mpp_source"], made["slide"]["read_by"]) == (0.499, "file", "openslide")
    assert found.n_obs > 50
