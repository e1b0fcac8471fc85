"""SpatialData in and out: the table annotates circles, the H&E is a multiscale image, both lie in `global` and `microns`.

`global` is pixels of the image, so positions and pixels come back bit for bit. A store that others wrote may place its elements
by any affine transformation; where it holds several tables, images or coordinate systems the caller chooses among those named.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float64, UInt8

from stexpr.config.files import writable
from stexpr.data.exchange import GIVEN, Found, SectionWords, as_section, assemble, packed, unpack
from stexpr.data.images import SlideImage
from stexpr.data.lazy_image import StoredRaster, is_rgb, lazy_pixels
from stexpr.data.pyramid import pyramid_sizes
from stexpr.data.section import Section, spot_pitch_px
from stexpr.errors import ConfigError, DataError, nearest
from stexpr.types import SPATIAL

if TYPE_CHECKING:
    from anndata import AnnData
else:  # it takes seconds to import
    AnnData = Any

__all__ = ["from_spatialdata", "to_spatialdata", "write_spatialdata"]

SpatialData: TypeAlias = Any
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

GLOBAL: Final = "global"
MICRONS: Final = "microns"
IMAGE: Final = "he"
SPOTS: Final = "spots"
TABLE: Final = "table"
ATTRS: Final = "spatialdata_attrs"
_EVEN: Final = 0.02
_AXES: Final = ("x", "y")


def to_spatialdata(
    section: "Section | AnnData",
    image: SlideImage | UInt8[Array, "H W 3"] | str | Path | None = None,
    *,
    mpp: float | None = None,
) -> "SpatialData":
    """Make SpatialData of a section, or of an AnnData and the image its spots lie on.

    Args:
        section: The section. An AnnData holds spot centers in `obsm["spatial"]`, image pixels, x then y.
        image: For an AnnData: an opened image, pixels or a file.
        mpp: For an AnnData: microns per pixel, unless stexpr or the image file says.

    Returns:
        Image `he`, circles `spots` (as wide as a spot; half the pitch where that is unknown) and the table `table`, whose
        `obs` tells the circle of each row. Pixels are read from the image file when they are asked for.

    Raises:
        DataError: An image is missing, or a column has a name that SpatialData refuses.
        ScaleError: The pixel size is unknown.
    """
    with _quiet():
        from spatialdata import SpatialData as Store  # type: ignore[import-untyped]
        from spatialdata.models import TableModel  # type: ignore[import-untyped]

        own = as_section(section, image, mpp)
        region_key, instance_key = (_free(name, own.spots.obs) for name in ("region", "instance_id"))
        table = packed(own.spots, SectionWords.of(own, added=(region_key, instance_key)))
        table.obs[region_key] = pd.Categorical([SPOTS] * table.n_obs)
        table.obs[instance_key] = table.obs_names.to_numpy(dtype=object)
        table.uns.pop(ATTRS, None)
        try:
            table = TableModel.parse(table, region=SPOTS, region_key=region_key, instance_key=instance_key)
        except (ValueError, TypeError, KeyError) as err:
            raise DataError(
                f"SpatialData refuses the table of section {own.name}: {' '.join(str(err).split())}; rename what it names"
            ) from err
        return Store(images={IMAGE: _image(own)}, shapes={SPOTS: _circles(own)}, tables={TABLE: table})


def write_spatialdata(section: Section, path: Path) -> None:
    """Write a section as a SpatialData zarr store, whole or not at all.

    Raises:
        DataError: The path exists, or cannot be written.
    """
    if path.exists():
        raise DataError(f"{path} exists already; choose another target, or delete it")
    data, partial = to_spatialdata(section), path.with_name(f".{path.name}.part")
    with writable(path.parent), _quiet():
        try:
            shutil.rmtree(partial, ignore_errors=True)
            data.write(partial)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def from_spatialdata(
    source: "SpatialData | str | Path",
    *,
    table: str | None = None,
    region: str | None = None,
    image: str | None = None,
    coordinate_system: str | None = None,
    **given: Any,
) -> Section:
    """Make a section of SpatialData, in memory or in a zarr store.

    Spot centers are the circles' (or the polygons' centroids) brought into the pixels of the image by way of the coordinate
    system. Microns per pixel are what the caller says, what stexpr wrote, or how the image lies in a system named `microns`.

    Args:
        source: The store.
        table: Which table; None takes the only one.
        region: Which of the regions it annotates; None takes the only one.
        image: Which image; None takes the only RGB image in the coordinate system.
        coordinate_system: Where image and region meet; None takes `global`, or the only one they share.
        **given: `section`, `patient`, `mpp`, `gene_namespace`, where the store does not say or is wrong.

    Returns:
        The section, with every column of the table; its image is read from the store when it is asked for.

    Raises:
        ConfigError: An unknown keyword.
        DataError: There is no such element, several and none chosen (all are named), or a row has no shape.
        ScaleError: The pixel size is unknown or contradictory.
    """
    for unknown in given.keys() - set(GIVEN):
        raise ConfigError(f"from_spatialdata takes no {unknown!r}; {nearest(unknown, GIVEN)}")
    with _quiet():
        store, name = _opened(source)
        table_name = _chosen("table", table, list(store.tables))
        spots = store.tables[table_name].copy()
        if ATTRS not in spots.uns:
            raise DataError(f"table {table_name} annotates no shapes; make it annotate the spots, as `TableModel.parse` does")
        attrs = spots.uns.pop(ATTRS)
        regions = [attrs["region"]] if isinstance(attrs["region"], str) else list(attrs["region"])
        shapes_name = _chosen("region", region, regions)
        if shapes_name not in store.shapes:
            raise DataError(f"table {table_name} annotates {shapes_name!r}, no shapes element; spots are circles or polygons")
        spots = spots[(spots.obs[attrs["region_key"]] == shapes_name).to_numpy()].copy()
        shapes = store.shapes[shapes_name]
        system, image_name = _meeting(store, shapes, image, coordinate_system)
        picture = store.images[image_name]
        there = _between(shapes, picture, system)
        spots.obsm[SPATIAL] = _centers(spots, shapes, shapes_name, attrs["instance_key"]) @ there[:2, :2].T + there[:2, 2]
        words = unpack(spots)
        for column in words.added if words is not None else ():
            del spots.obs[column]
        scale = _microns(picture)
        more = {} if words is not None else _diameter(shapes, there, scale)
        said = {} if scale is None else {f"coordinate system {MICRONS}": scale}
        opened = SlideImage(Path(f"{name}/images/{image_name}"), StoredRaster(picture, image_name, scale))
        return assemble(spots, opened, Found(Path(name).stem, given, words, said, more))


def _image(section: Section) -> Any:
    from spatialdata.models import Image2DModel

    levels = len(pyramid_sizes(section.image.width, section.image.height)) - 1
    return Image2DModel.parse(
        lazy_pixels(section.image),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * levels or None,
        transformations=_transformations(section.mpp),
    )


def _circles(section: Section) -> Any:
    import geopandas  # type: ignore[import-untyped]
    from spatialdata.models import ShapesModel

    centers = np.asarray(section.spots.obsm[SPATIAL], dtype=np.float64)
    diameter = section.spot_diameter_um / section.mpp if section.spot_diameter_um else (spot_pitch_px(centers) or 2.0) / 2
    frame = geopandas.GeoDataFrame(
        {"radius": np.full(len(centers), diameter / 2)},
        geometry=geopandas.points_from_xy(centers[:, 0], centers[:, 1]),
        index=section.spots.obs_names.to_numpy(dtype=object),
    )
    return ShapesModel.parse(frame, transformations=_transformations(section.mpp))


def _transformations(mpp: float) -> dict[str, Any]:
    from spatialdata.transformations import Identity, Scale  # type: ignore[import-untyped]

    return {GLOBAL: Identity(), MICRONS: Scale([mpp, mpp], axes=_AXES)}


def _free(name: str, columns: Any) -> str:
    while name in columns:
        name = f"{name}_"
    return name


def _opened(source: Any) -> tuple[Any, str]:
    from spatialdata import SpatialData as Store
    from spatialdata import read_zarr

    if isinstance(source, Store):
        return source, str(source.path or "section")
    if not Path(source).is_dir():
        raise DataError(f"no folder {source}; name a SpatialData zarr store")
    try:
        return read_zarr(source), str(source)
    except Exception as err:  # zarr, ome-zarr and anndata raise whatever their first failing line does
        raise DataError(f"cannot read {source} as a SpatialData store: {' '.join(str(err).split())[:200]}") from err


def _chosen(what: str, name: str | None, held: list[str]) -> str:
    if name is None:
        if len(held) == 1:
            return held[0]
        raise DataError(f"the store holds {len(held)} {what}s to choose from: {', '.join(held) or 'none'}; say {what}=NAME")
    if name not in held:
        raise DataError(f"the store holds no {what} {name!r}; {nearest(name, held)}")
    return name


def _meeting(store: Any, shapes: Any, image: str | None, system: str | None) -> tuple[str, str]:
    """Choose the coordinate system and the image."""
    systems = set(_lay(shapes))
    reach = {name: systems & set(_lay(picture)) for name, picture in store.images.items()}
    if image is not None:
        reach = {_chosen("image", image, list(reach)): reach.get(image, set())}
    if system is None:
        shared = sorted(set().union(*reach.values()) - {MICRONS})
        system = GLOBAL if GLOBAL in shared else _chosen("coordinate_system", None, shared)
    elif system not in systems:
        raise DataError(f"the spots do not lie in a coordinate system {system!r}; {nearest(system, systems)}")
    colored = [name for name, own in reach.items() if system in own and is_rgb(store.images[name])]
    if image is not None and image not in colored:
        raise DataError(f"image {image} is no 8-bit RGB image in the coordinate system {system}; choose others")
    return system, _chosen("image", image, colored)


def _centers(spots: Any, shapes: Any, name: str, instance_key: str) -> Float64[Array, "S 2"]:
    rows = shapes.index.get_indexer(spots.obs[instance_key])
    if (rows < 0).any():
        first = spots.obs[instance_key].iloc[int(np.argmax(rows < 0))]
        raise DataError(f"{int((rows < 0).sum())} of {len(rows)} spots have no shape in {name}, such as {first}")
    points = shapes.geometry.iloc[rows].centroid
    return np.column_stack([points.x, points.y])


def _lay(element: Any) -> dict[str, Any]:
    """Return how an element lies in each coordinate system it is in."""
    from spatialdata.transformations import get_transformation

    return dict(get_transformation(element, get_all=True))


def _matrix(element: Any, system: str) -> Float64[Array, "3 3"]:
    return np.asarray(_lay(element)[system].to_affine_matrix(_AXES, _AXES), dtype=np.float64)


def _between(shapes: Any, picture: Any, system: str) -> Float64[Array, "3 3"]:
    """Return the matrix from the coordinates of shapes to the pixels of an image."""
    source, target = _matrix(shapes, system), _matrix(picture, system)
    return np.eye(3) if np.array_equal(source, target) else np.linalg.solve(target, source)  # the same place stays it exactly


def _microns(picture: Any) -> float | None:
    """Return microns per pixel by how an image lies in the system named so; None where it does not."""
    if MICRONS not in _lay(picture):
        return None
    x, y = (float(np.hypot(*column)) for column in _matrix(picture, MICRONS)[:2, :2].T)
    if abs(x - y) > _EVEN * x:
        raise DataError(f"the image has pixels of {x:g} x {y:g} um in the coordinate system {MICRONS}; they must be square")
    return x if x == y else (x + y) / 2


def _diameter(shapes: Any, there: Float64[Array, "3 3"], mpp: float | None) -> dict[str, float]:
    """Take the diameter of the spots from their circles, where these are alike and a scale is known."""
    if mpp is None or "radius" not in shapes or shapes["radius"].nunique() != 1:
        return {}
    return {"spot_diameter_um": float(2 * shapes["radius"].iloc[0] * np.sqrt(abs(np.linalg.det(there[:2, :2]))) * mpp)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Pass over what the libraries below say of each other, which no caller can change; miss the extra with a clear word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Call to deprecated class Scaler", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="zarr v3 autosharding will be the default", category=UserWarning)
        try:
            yield
        except ModuleNotFoundError as err:
            if (err.name or "").split(".")[0] not in ("spatialdata", "geopandas", "dask", "xarray"):
                raise
            raise ConfigError("SpatialData is not installed; pip install 'stexpr[spatialdata]'") from err
