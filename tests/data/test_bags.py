import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stexpr.data.bag_store import BagStore
from stexpr.data.bags import BagRows, read_bag, write_bag
from stexpr.errors import DataError

HOW = {"mpp": 0.5, "patch_px": 224, "side": 448.0, "encoder": "abc"}


def features(n: int = 7, width: int = 5, dtype: type = np.float16) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, width)).astype(dtype)


def corners(n: int) -> np.ndarray:
    return np.arange(2 * n).reshape(n, 2) * 448


def written(path: Path, values: np.ndarray, **how) -> Path:
    write_bag(path, [(values, corners(len(values)))], **{**HOW, **how})
    return path


def foreign(path: Path, key: str, values: np.ndarray, coords: np.ndarray | None = None) -> h5py.File:
    file = h5py.File(path, "w")
    file[key] = values
    file["coords"] = corners(len(values)) if coords is None else coords
    return file


@settings(max_examples=25, deadline=None)
@given(
    values=hnp.arrays(np.float16, st.tuples(st.integers(1, 40), st.integers(1, 6)), elements=st.floats(-9, 9, width=16)),
    step=st.integers(1, 50),
    rows=st.integers(1, 50),
)
def test_a_bag_goes_round_however_it_is_cut(values, step, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("bag") / "s.1.h5"
    coords = corners(len(values))
    bag = write_bag(path, ((values[i : i + step], coords[i : i + step]) for i in range(0, len(values), step)), **HOW)
    assert (bag.slide, bag.n, bag.width, bag.layout) == ("s.1", *values.shape, "stexpr")
    assert (bag.mpp, bag.patch_px, bag.side, bag.encoder, bag.unit) == (0.5, 224, 448.0, "abc", "px")
    chunks = list(bag.chunks(rows))
    assert all(len(chunk) <= rows for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), values)
    np.testing.assert_array_equal(bag.features(), values)
    np.testing.assert_array_equal(bag.coords(), coords)
    assert bag.features().dtype == np.float16


def test_stamp_is_read_as_it_is(tmp_path):
    values = features()
    with foreign(tmp_path / "s.h5", "feats", values, corners(7) / 3) as file:
        file.attrs.update(extractor="uni", unit="um", tile_size_um=256.0, tile_size_px=224, stamp_version="2.3.0")
    bag = read_bag(tmp_path / "s.h5")
    assert (bag.layout, bag.unit, bag.side, bag.patch_px, bag.encoder) == ("stamp", "um", 256.0, 224, "uni")
    assert bag.mpp == pytest.approx(256 / 224)
    np.testing.assert_array_equal(bag.features(), values)
    np.testing.assert_allclose(bag.coords(), corners(7) / 3)


def test_trident_is_read_as_it_is(tmp_path):
    values = features(dtype=np.float32)
    with foreign(tmp_path / "s.h5", "features", values) as file:
        file["features"].attrs["encoder"] = "conch_v15"
        file["coords"].attrs.update(patch_size=512, patch_size_level0=1024, target_magnification=20)
    bag = read_bag(tmp_path / "s.h5")
    assert (bag.layout, bag.side, bag.patch_px, bag.encoder, bag.mpp) == ("trident", 1024.0, 512, "conch_v15", None)
    assert bag.features().dtype == np.float32
    np.testing.assert_array_equal(bag.features(), values)


def test_clam_is_read_as_it_is(tmp_path):
    foreign(tmp_path / "s.h5", "features", features(dtype=np.float32)).close()
    bag = read_bag(tmp_path / "s.h5")
    assert (bag.layout, bag.n, bag.width, bag.side, bag.mpp, bag.encoder) == ("clam", 7, 5, None, None, None)


def test_one_patch_is_a_bag(tmp_path):
    assert read_bag(written(tmp_path / "s.h5", features(1))).features().shape == (1, 5)


def test_a_store_reads_headers_and_names_what_is_missing(tmp_path):
    for slide in "ab":
        written(tmp_path / f"{slide}.h5", features())
    (tmp_path / ".c.h5").write_text("hidden")
    store = BagStore.open(tmp_path)
    assert (list(store.bags), store.width, store["b"].n) == (["a", "b"], 5, 7)
    assert list(BagStore.open(tmp_path, ["b"]).bags) == ["b"]
    for missing in (lambda: store["bb"], lambda: BagStore.open(tmp_path, ["bb"])):
        with pytest.raises(DataError, match=r"slide 'bb' has no bag.*did you mean 'b'"):
            missing()


def test_slides_of_other_width_or_encoder_are_named(tmp_path):
    for slide in "abc":
        written(tmp_path / f"{slide}.h5", features())
    written(tmp_path / "odd.h5", features(width=4))
    with pytest.raises(DataError, match=r"features per patch: 5 in 3 of 4, 4 in slide odd"):
        BagStore.open(tmp_path)
    written(tmp_path / "odd.h5", features(), encoder="xyz")
    with pytest.raises(DataError, match=r"encoder: abc in 3 of 4, xyz in slide odd"):
        BagStore.open(tmp_path)
    with pytest.raises(DataError, match="holds no bags"):
        BagStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_name_slide_and_patch(tmp_path, bad):
    values = features(20, dtype=np.float32)
    values[13, 2] = bad
    foreign(tmp_path / "s9.h5", "features", values).close()
    with pytest.raises(DataError, match=r"slide s9 .* in 1 of patches 10 to 19, first in patch 13"):
        list(read_bag(tmp_path / "s9.h5").chunks(10))
    with pytest.raises(DataError, match=r"slide s8 .*first in patch 13"):
        written(tmp_path / "s8.h5", values)
    assert not (tmp_path / "s8.h5").exists()


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"slide s .*not finite"):
        written(tmp_path / "s.h5", np.full((2, 3), 1e6, np.float32))


def test_a_failed_write_leaves_the_old_bag(tmp_path):
    path = written(tmp_path / "s.h5", features(3))

    def chunks():
        yield features(4), corners(4)
        raise RuntimeError("the slide is corrupt")

    with pytest.raises(RuntimeError):
        write_bag(path, chunks(), **HOW)
    np.testing.assert_array_equal(read_bag(path).features(), features(3))
    assert [file.name for file in tmp_path.iterdir()] == ["s.h5"]


def test_what_does_not_go_together_is_not_written(tmp_path):
    for chunks, message in (
        ([], "no patches"),
        ([(features(3), corners(4))], "do not go with"),
        ([(features(3), corners(3)), (features(3, 6), corners(3))], "5 features at first and 6 later"),
        ([(features(3), corners(3) + 0.5)], "whole numbers"),
    ):
        with pytest.raises(DataError, match=message):
            write_bag(tmp_path / "s.h5", chunks, **HOW)
    with pytest.raises(DataError, match=r"a \.h5 file"):
        write_bag(tmp_path / "s.npy", [(features(3), corners(3))], **HOW)
    assert not list(tmp_path.iterdir())


def test_damaged_files_name_their_slide(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    foreign(tmp_path / "empty.h5", "features", features(0)).close()
    foreign(tmp_path / "flat.h5", "features", features(3)[:, 0], corners(3)).close()
    foreign(tmp_path / "whole.h5", "features", features(3).astype(int)).close()
    foreign(tmp_path / "short.h5", "features", features(3), corners(2)).close()
    foreign(tmp_path / "other.h5", "embeddings", features(3)).close()
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["features"] = features(3)
    for slide, message in {
        "text": "cannot read",
        "empty": "is empty",
        "flat": "floating point",
        "whole": "floating point",
        "short": "coords",
        "other": "holds no features.*found: coords, embeddings",
        "none": "coords in .* is missing",
        "absent": "cannot read",
    }.items():
        with pytest.raises(DataError, match=f"slide {slide}.*{message}"):
            read_bag(tmp_path / f"{slide}.h5")


def test_a_bag_reads_no_other_file(tmp_path):
    written(tmp_path / "secret.h5", features(3))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink("secret.h5", "/features")
        file["coords"] = corners(3)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(shape=(3, 5), dtype=np.float16)
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "features", shape=(3, 5))
        file.create_virtual_dataset("features", layout)
        file["coords"] = corners(3)
    for slide in ("link", "virtual"):
        with pytest.raises(DataError, match=f"slide {slide}: features .* no array of this file"):
            read_bag(tmp_path / f"{slide}.h5")


def test_files_of_a_newer_format_are_refused(tmp_path):
    path = written(tmp_path / "s.h5", features())
    with h5py.File(path, "a") as file:
        file.attrs["stexpr_bag"] = 2
    with pytest.raises(DataError, match="format 2; this version of stexpr reads format 1"):
        read_bag(path)


def test_a_bag_that_changed_is_told(tmp_path):
    bag = read_bag(written(tmp_path / "s.h5", features()))
    written(tmp_path / "s.h5", features(8))
    with pytest.raises(DataError, match=r"slide s .*changed"):
        bag.features()
    with pytest.raises(DataError, match="at least 1"):
        list(bag.chunks(0))


def test_200_000_patches_stream_in_the_memory_of_a_few(tmp_path):
    n, width, step = 200_000, 64, 10_000
    block = features(step, width)
    bag = write_bag(tmp_path / "s.h5", ((block, corners(step)) for _ in range(n // step)), **HOW)
    tracemalloc.start()
    total = sum(len(chunk) for chunk in bag.chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == bag.n == n
    assert peak < n * width * 2 / 4


GENES = ("KRT5", "MKI67", "ERBB2")


def full_rows(n: int, seed: int = 0) -> BagRows:
    rng = np.random.default_rng(seed)
    halves = (rng.normal(size=(n, width)).astype(np.float16) for width in (5, len(GENES), 12))
    values, expression, color = halves
    return BagRows(values, corners(n), expression, color, rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8))


def cut(rows: BagRows, step: int) -> Iterator[BagRows]:
    for i in range(0, len(rows.coords), step):
        yield BagRows(*(None if part is None else part[i : i + step] for part in rows))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), step=st.integers(1, 50), rows=st.integers(1, 50), data=st.data())
def test_all_that_stands_for_a_patch_goes_round_however_it_is_cut(n, step, rows, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("bag") / "s.h5"
    whole = full_rows(n)
    made = {"slide": {"file": "s.svs"}}
    how = {"level0_mpp": 0.25, "size_px": (90, 60), "provenance": made}
    bag = write_bag(path, cut(whole, step), **HOW, genes=GENES, **how)
    assert (bag.genes, bag.level0_mpp, bag.size_px, bag.provenance) == (GENES, 0.25, (90, 60), made)
    assert bag.content == write_bag(path, [whole], **HOW, genes=GENES).content
    both = np.concatenate([whole.features, whole.expression], axis=1)
    index = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    for instances, values in {
        "features": whole.features,
        "expression": whole.expression,
        "both": both,
        "color": whole.color,
    }.items():
        assert bag.has(instances)
        assert bag.width_of(instances) == values.shape[1]
        np.testing.assert_array_equal(bag.features(instances), values)
        np.testing.assert_array_equal(np.concatenate(list(bag.chunks(rows, instances))), values)
        np.testing.assert_array_equal(bag.read(index, instances), values[index])
    np.testing.assert_array_equal(bag.patches(index), whole.patches[index])


def test_rows_far_apart_are_read_over_the_borders_of_stored_pieces(tmp_path):
    values = features(1000)
    bag = read_bag(written(tmp_path / "s.h5", values))
    for index in ([0, 255, 256, 999], [3], list(range(1000)), [511, 512, 767]):
        np.testing.assert_array_equal(bag.read(np.array(index)), values[index])
    for index in ([3, 3], [4, 2], [-1], [1000]):
        with pytest.raises(DataError, match="each once, in rising order, from 0 to 999"):
            bag.read(np.array(index))


def test_what_a_bag_lacks_is_asked_for_by_name(tmp_path):
    bag = read_bag(written(tmp_path / "s.h5", features()))
    assert (bag.genes, bag.has("features"), bag.has("both"), bag.has("color"), bag.has("patches")) == ((), True, *[False] * 3)
    for instances in ("expression", "both"):
        with pytest.raises(DataError, match=r"slide s .* holds no expression; stexpr slides embed --expression writes it"):
            bag.features(instances)
    with pytest.raises(DataError, match="holds no color"):
        bag.width_of("color")
    with pytest.raises(DataError, match="no patches; stexpr slides embed --patches"):
        bag.patches(np.array([0]))


def test_rows_that_do_not_go_together_are_not_written(tmp_path):
    rows = full_rows(4)
    nan = np.full((4, 3), np.nan, np.float32)
    for chunks, genes, message in (
        ([rows], GENES[:2], "2 different genes are named for expression of 3"),
        ([rows], (*GENES[:2], GENES[0]), "2 different genes are named for expression of 3"),
        ([(rows.features, rows.coords)], GENES, "3 different genes are named for expression of 0"),
        ([rows, rows._replace(color=None)], GENES, "color, .* at first and coords, expression, features, patches later"),
        ([rows._replace(expression=nan)], GENES, "slide s has expression that are not finite .* first in patch 0"),
        ([rows._replace(color=rows.color[:2])], GENES, "color of 2 patches does not go with 4 coordinates"),
        ([rows, rows._replace(patches=rows.patches[:, :4])], GENES, "8x8x3 patches at first and 4x8x3 later"),
    ):
        with pytest.raises(DataError, match=message):
            write_bag(tmp_path / "s.h5", chunks, **HOW, genes=genes)
    assert not list(tmp_path.iterdir())


def test_a_store_agrees_in_genes_and_hashes_what_it_holds(tmp_path):
    for slide in "ab":
        write_bag(tmp_path / f"{slide}.h5", [full_rows(4)], **HOW, genes=GENES)
    store = BagStore.open(tmp_path)
    assert (store.genes, store.width_of("both"), store.width_of("color")) == (GENES, 8, 12)
    assert len({store.hash, BagStore.open(tmp_path, ["a"]).hash}) == 2
    moved = tmp_path / "moved"
    for slide in "ab":
        write_bag(moved / f"{slide}.h5", cut(full_rows(4), 3), **HOW, genes=GENES, provenance={"seconds": 2.0})
    assert BagStore.open(moved).hash == store.hash
    write_bag(moved / "b.h5", [full_rows(4, seed=1)], **HOW, genes=GENES)
    assert BagStore.open(moved).hash != store.hash
    write_bag(moved / "b.h5", [full_rows(4)], **HOW, genes=GENES[::-1])
    with pytest.raises(DataError, match=r"differ in genes of the predicted expression: 3 \(.*\) in 1 of 2, 3 \(.*\) in slide"):
        BagStore.open(moved)
    written(moved / "b.h5", features(4))
    with pytest.raises(DataError, match="none in slide b"):
        BagStore.open(moved)


def test_files_of_others_are_hashed_whole(tmp_path):
    hashes = set()
    for i, values in enumerate((features(7), features(7), features(8))):
        (tmp_path / str(i)).mkdir()
        foreign(tmp_path / str(i) / "a.h5", "features", values).close()
        hashes.add(BagStore.open(tmp_path / str(i)).hash)
    assert len(hashes) == 2


def test_damaged_arrays_beside_the_features_are_refused(tmp_path):
    for key, values in {"expression": np.zeros((4, 2), np.float16), "patches": np.zeros((3, 8, 8, 3), np.uint8)}.items():
        path = tmp_path / f"{key}.h5"
        write_bag(path, [full_rows(4)], **HOW, genes=GENES)
        with h5py.File(path, "a") as file:
            del file[key]
            file[key] = values
        with pytest.raises(DataError, match=f"slide {key}: {key} in .* expected"):
            read_bag(path)
    with h5py.File(path, "a") as file:
        file.attrs["provenance"] = "{"
    with pytest.raises(DataError):
        read_bag(path)


def test_reading_a_large_bag_takes_the_memory_of_the_bag(tmp_path):
    n, width = 20_000, 256
    values = features(n, width)
    bag = read_bag(written(tmp_path / "s.h5", values))
    tracemalloc.start()
    bag.features()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * values.nbytes
