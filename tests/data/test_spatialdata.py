"""SpatialData as stexpr writes it, and as others do."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import geopandas
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata
from shapely.geometry import box
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

from stexpr.data.images import ArrayImage
from stexpr.data.spatialdata import from_spatialdata, to_spatialdata, write_spatialdata
from stexpr.errors import ConfigError, DataError, ScaleError, StexprError

# What libraries below say of each other when a test writes by itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding will be the default:UserWarning"),
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),
]
N = 12
MPP = 0.5


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (180, 240, 3), dtype=np.uint8)


def spots() -> anndata.AnnData:
    y, x = np.divmod(np.arange(N), 4)
    return anndata.AnnData(
        sp.csr_matrix(np.random.default_rng(1).poisson(2, (N, 5)).astype(np.float32)),
        obs=pd.DataFrame({"cluster": ["a", "b"] * (N // 2)}, index=[f"AAAC{i}-1" for i in range(N)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(5)]),
        obsm={"spatial": np.stack([x, y], axis=1) * 50.0 + 30},
    )


@pytest.fixture
def store() -> spatialdata.SpatialData:
    return to_spatialdata(spots(), pixels(), mpp=MPP)


# --- out -----------------------------------------------------------------------------------------------------------------


def test_an_anndata_and_its_image_become_elements_that_know_each_other(store: spatialdata.SpatialData) -> None:
    table = store.tables["table"]
    assert spatialdata.get_element_annotators(store, "spots") == {"table"}
    circles = store.shapes["spots"]
    np.testing.assert_array_equal(np.column_stack([circles.geometry.x, circles.geometry.y]), spots().obsm["spatial"])
    assert list(circles.index) == list(table.obs_names) == list(table.obs["instance_id"])
    assert set(circles["radius"]) == {12.5}  # no diameter is known: half the pitch across
    np.testing.assert_array_equal(store.images["he"].transpose("y", "x", "c").values, pixels())
    for element in (store.images["he"], circles):
        found = get_transformation(element, get_all=True)
        assert found == {"global": Identity(), "microns": found["microns"]}
        np.testing.assert_array_equal(found["microns"].to_affine_matrix(("x", "y"), ("x", "y")), np.diag([MPP, MPP, 1]))


def test_a_large_image_has_levels_and_is_read_in_pieces(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (1300, 2100, 3), dtype=np.uint8)
    read: list[int] = []

    class Counting(ArrayImage):
        def read(self, x: Any, y: Any, side: Any, size: int) -> np.ndarray:
            read.append(int(side))
            return super().read(x, y, side, size)

    made = to_spatialdata(spots(), Counting(large), mpp=MPP)
    assert [level.image.shape for level in made.images["he"].children.values()] == [
        (3, 1300, 2100),
        (3, 650, 1050),
        (3, 325, 525),
    ]
    assert not read
    made.write(tmp_path / "large.zarr")
    assert max(read) <= 1024
    with from_spatialdata(tmp_path / "large.zarr").image as image:
        assert (image.width, image.height, image.mpp) == (2100, 1300, MPP)
        np.testing.assert_array_equal(image.read(1000, 200, 300, 300), large[200:500, 1000:1300])
        assert image.thumbnail(525).shape == (325, 525, 3)


def test_the_table_may_hold_columns_of_our_names(tmp_path: Path) -> None:
    data = spots()
    data.obs["region"], data.obs["instance_id"] = "tumor", np.arange(N)
    back = from_spatialdata(to_spatialdata(data, pixels(), mpp=MPP))
    pd.testing.assert_frame_equal(back.spots.obs, data.obs)
    assert "spatialdata_attrs" not in back.spots.uns
    assert set(back.spots.uns) == set()


def test_what_spatialdata_refuses_is_said(tmp_path: Path) -> None:
    data = spots()
    data.obs["percent of counts"] = 1.0
    with pytest.raises(DataError, match=r"SpatialData refuses the table of section section: .*percent of counts"):
        to_spatialdata(data, pixels(), mpp=MPP)
    with pytest.raises(DataError, match="needs the image its spots lie on"):
        to_spatialdata(spots())
    with pytest.raises(ScaleError, match="microns per pixel are unknown"):
        to_spatialdata(spots(), pixels())
    section = from_spatialdata(to_spatialdata(spots(), pixels(), mpp=MPP))
    with pytest.raises(DataError, match="has its own image and mpp"):
        to_spatialdata(section, mpp=1.0)
    write_spatialdata(section, tmp_path / "one.zarr")
    with pytest.raises(DataError, match="exists already"):
        write_spatialdata(section, tmp_path / "one.zarr")


def test_spatialdatas_own_queries_work_on_it(store: spatialdata.SpatialData, tmp_path: Path) -> None:
    store.write(tmp_path / "one.zarr")
    read = spatialdata.read_zarr(tmp_path / "one.zarr")
    part = spatialdata.bounding_box_query(
        read, axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[50, 50], target_coordinate_system="microns"
    )
    assert part.tables["table"].n_obs == 4  # 100 px each way hold two by two
    back = from_spatialdata(part)
    np.testing.assert_allclose(back.spots.obsm["spatial"], spots().obsm["spatial"][[0, 1, 4, 5]])
    assert (back.image.width, back.image.height) == (100, 100)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(ConfigError, match=r"SpatialData is not installed; pip install 'stexpr\[spatialdata\]'"):
        to_spatialdata(spots(), pixels(), mpp=MPP)


# --- in ------------------------------------------------------------------------------------------------------------------

TURNED = np.array([[0.0, -2.0, 400.0], [2.0, 0.0, 10.0], [0.0, 0.0, 1.0]])
"""Image pixels into the store's common coordinates: turned by a quarter, twice as large, and moved."""


def foreign(**changes: Any) -> spatialdata.SpatialData:
    """A store as another tool makes it: integer instances in an order of their own, the image turned, no micron in sight."""
    table, order = spots(), np.random.default_rng(2).permutation(N)
    centers = table.obsm.pop("spatial")
    there = centers @ TURNED[:2, :2].T + TURNED[:2, 2]
    frame = geopandas.GeoDataFrame({"radius": 20.0}, geometry=geopandas.points_from_xy(*there.T), index=np.arange(N) + 100)
    table.obs["spot_id"], table.obs["where"] = np.arange(N) + 100, pd.Categorical(["circles"] * N)
    lay = Affine(TURNED, input_axes=("x", "y"), output_axes=("x", "y"))
    image = Image2DModel.parse(np.moveaxis(pixels(), 2, 0), dims=("c", "y", "x"), transformations={"sample": lay})
    elements: dict[str, Any] = {
        "images": {"slide": image},
        "shapes": {"circles": ShapesModel.parse(frame.iloc[order], transformations={"sample": Identity()})},
        "tables": {"counts": TableModel.parse(table, region="circles", region_key="where", instance_key="spot_id")},
    }
    return spatialdata.SpatialData(**{kind: {**own, **changes.get(kind, {})} for kind, own in elements.items()})


def test_spots_are_brought_into_the_pixels_of_the_image() -> None:
    found = from_spatialdata(foreign(), mpp=MPP, section="S1")
    np.testing.assert_allclose(found.spots.obsm["spatial"], spots().obsm["spatial"], atol=1e-9)
    assert (found.name, found.mpp, found.mpp_source) == ("S1", MPP, "given")
    assert list(found.spots.obs) == ["cluster", "spot_id", "where"]  # theirs, and none of them dropped
    with found.image as image:
        np.testing.assert_array_equal(image.read(0, 0, 180, 180), pixels()[:, :180])
    with pytest.raises(ScaleError, match="microns per pixel are unknown"):
        from_spatialdata(foreign())


def test_microns_and_the_diameter_come_from_the_coordinate_system() -> None:
    store = foreign()
    in_um = Affine(np.diag([0.25, 0.25, 1]) @ TURNED, input_axes=("x", "y"), output_axes=("x", "y"))
    spatialdata.transformations.set_transformation(store.images["slide"], in_um, "microns")
    found = from_spatialdata(store)
    assert (found.mpp, found.mpp_source) == (0.5, "coordinate system microns")
    assert found.spot_diameter_um == pytest.approx(10.0)  # 40 common units across are 20 px
    squeezed = Scale([0.5, 0.6], axes=("x", "y"))
    spatialdata.transformations.set_transformation(store.images["slide"], squeezed, "microns")
    with pytest.raises(StexprError, match=r"pixels of 0\.5 x 0\.6 um"):
        from_spatialdata(store)


def test_polygons_count_with_their_centroids() -> None:
    squares = geopandas.GeoDataFrame(
        geometry=[box(x - 5, y - 5, x + 5, y + 5) for x, y in spots().obsm["spatial"]], index=np.arange(N) + 100
    )
    shapes = ShapesModel.parse(squares, transformations={"sample": Affine(TURNED, ("x", "y"), ("x", "y"))})
    found = from_spatialdata(foreign(shapes={"circles": shapes}), mpp=MPP)
    np.testing.assert_allclose(found.spots.obsm["spatial"], spots().obsm["spatial"], atol=1e-9)


def another_image(**parse: Any) -> Any:
    channels = parse.pop("channels", 3)
    values = np.zeros((channels, 20, 20), dtype=parse.pop("dtype", np.uint8))
    return Image2DModel.parse(values, dims=("c", "y", "x"), transformations={"sample": Identity()}, **parse)


def test_what_there_are_several_of_is_chosen_by_name() -> None:
    two = foreign(images={"second": another_image()})
    with pytest.raises(DataError, match=r"holds 2 images to choose from: slide, second; say image=NAME"):
        from_spatialdata(two, mpp=MPP)
    assert from_spatialdata(two, image="second", mpp=MPP).image.width == 20
    assert from_spatialdata(two, image="slide", mpp=MPP).image.width == 240
    with pytest.raises(ConfigError, match="takes no 'imag'; known: gene_namespace, mpp"):
        from_spatialdata(two, imag="slide")
    with pytest.raises(DataError, match="no image 'slid'; did you mean 'slide'"):
        from_spatialdata(two, image="slid", mpp=MPP)
    tables = foreign(tables={"second": spots()})
    with pytest.raises(DataError, match=r"2 tables to choose from: counts, second; say table=NAME"):
        from_spatialdata(tables)
    with pytest.raises(DataError, match="table second annotates no shapes"):
        from_spatialdata(tables, table="second")
    assert from_spatialdata(tables, table="counts", mpp=MPP).spots.n_obs == N


def test_images_that_are_no_color_pictures_are_passed_over() -> None:
    images = {"dapi": another_image(channels=1), "deep": another_image(dtype=np.uint16)}
    store = foreign(images=images)
    assert from_spatialdata(store, mpp=MPP).image.width == 240
    with pytest.raises(DataError, match="image deep is no 8-bit RGB image in the coordinate system sample"):
        from_spatialdata(store, image="deep", mpp=MPP)


def test_several_coordinate_systems_are_named() -> None:
    store = foreign()
    for element in (store.images["slide"], store.shapes["circles"]):
        spatialdata.transformations.set_transformation(element, Identity(), "other")
    with pytest.raises(DataError, match=r"2 coordinate_systems to choose from: other, sample; say coordinate_system=NAME"):
        from_spatialdata(store, mpp=MPP)
    there = from_spatialdata(store, coordinate_system="sample", mpp=MPP).spots.obsm["spatial"]
    np.testing.assert_allclose(there, spots().obsm["spatial"], atol=1e-9)
    with pytest.raises(DataError, match="do not lie in a coordinate system 'sampl'; did you mean 'sample'"):
        from_spatialdata(store, coordinate_system="sampl", mpp=MPP)


def test_one_region_of_a_table_of_several() -> None:
    store = foreign()
    table = store.tables["counts"].copy()
    table.obs["where"] = pd.Categorical(["circles"] * 8 + ["more"] * 4)
    more = store.shapes["circles"].copy()
    more.attrs = {}
    more = ShapesModel.parse(more, transformations={"sample": Identity()})
    del table.uns["spatialdata_attrs"]
    table = TableModel.parse(table, region=["circles", "more"], region_key="where", instance_key="spot_id")
    both = foreign(shapes={"more": more}, tables={"counts": table})
    with pytest.raises(DataError, match=r"2 regions to choose from: circles, more; say region=NAME"):
        from_spatialdata(both)
    found = from_spatialdata(both, region="more", mpp=MPP)
    assert list(found.spots.obs_names) == list(spots().obs_names[8:])
    np.testing.assert_allclose(found.spots.obsm["spatial"], spots().obsm["spatial"][8:], atol=1e-9)


def lost(store: spatialdata.SpatialData) -> None:
    store.shapes["circles"] = store.shapes["circles"].drop(index=[104])


def labels(store: spatialdata.SpatialData) -> None:
    del store.shapes["circles"]
    store.labels["circles"] = Labels2DModel.parse(np.zeros((20, 20), dtype=np.int16), dims=("y", "x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [(lost, "1 of 12 spots have no shape in circles, such as 104"), (labels, "annotates 'circles', no shapes element")],
)
@pytest.mark.filterwarnings("ignore:.*circles.*:UserWarning")
def test_spots_without_a_shape_are_refused(change: Callable[[Any], None], message: str) -> None:
    store = foreign()
    change(store)
    with pytest.raises(DataError, match=message):
        from_spatialdata(store, mpp=MPP)


def test_a_store_that_contradicts_what_stexpr_wrote_is_refused(store: spatialdata.SpatialData) -> None:
    spatialdata.transformations.set_transformation(store.images["he"], Scale([0.7, 0.7], axes=("x", "y")), "microns")
    with pytest.raises(ScaleError, match=r"given says 0\.5 um/px and coordinate system microns 0\.7; say with mpp"):
        from_spatialdata(store)
    assert from_spatialdata(store, mpp=0.7).mpp == 0.7


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        from_spatialdata(tmp_path / "nothing.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*empty\.zarr as a SpatialData store"):
        from_spatialdata(tmp_path / "empty.zarr")
