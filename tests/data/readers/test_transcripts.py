import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.readers.transcripts import LOW_QUALITY, control_kind, pool_transcripts
from stexpr.errors import DataError

NAMES = ("EPCAM", "KRT8", "ANTXR1", "NegControlProbe_00042", "BLANK_0069", "UnassignedCodeword_0498")


def write(path, names, x, y, qv, **more):
    floats = {"x_location": x, "y_location": y, "qv": qv}
    columns = {name: pa.array(np.array(values, dtype=np.float32)) for name, values in floats.items()}
    pq.write_table(pa.table({"feature_name": pa.array(names, pa.string()), **columns, **more}), path, row_group_size=7)


transcript = st.tuples(
    st.sampled_from(NAMES),
    st.floats(-300, 9000, width=32),
    st.floats(-300, 9000, width=32),
    st.sampled_from([0.0, 19.9, 20.0, 40.0, float("nan")]),
)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(transcript, max_size=60),
    side=st.sampled_from([8.0, 55.0, 100.0, 333.3]),
    batch=st.sampled_from([1, 5, 1000]),
)
def test_every_transcript_is_counted_once(tmp_path_factory, rows, side, batch):
    path = tmp_path_factory.mktemp("t") / "transcripts.parquet"
    write(path, *([row[i] for row in rows] for i in range(4)))
    pooled = pool_transcripts(path, side, batch=batch)
    assert pooled.total == len(rows) == pooled.counts.sum() + sum(pooled.left_out.values())
    expected = Counter(
        (int(np.floor(np.float64(np.float32(x)) / side)), int(np.floor(np.float64(np.float32(y)) / side)), name)
        for name, x, y, qv in rows
        if not control_kind(name) and qv >= 20
    )
    counted = pooled.counts.tocoo()
    found = {
        (*map(int, pooled.squares[i]), pooled.genes[j]): int(n)
        for i, j, n in zip(counted.row, counted.col, counted.data, strict=True)
    }
    assert found == expected
    assert pooled.left_out == dict(
        sorted(
            Counter(control_kind(name) or LOW_QUALITY for name, _, _, qv in rows if control_kind(name) or not qv >= 20).items()
        )
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NegControlProbe_00042", "negative control probe"),
        ("NegControlCodeword_0500", "negative control codeword"),
        ("antisense_TUBB2B", "antisense probe"),
        ("BLANK_0069", "blank codeword"),
        ("Blank-12", "blank codeword"),
        ("UnassignedCodeword_0498", "unassigned codeword"),
        ("DeprecatedCodeword_0334", "deprecated codeword"),
        ("Intergenic_Region_00012", "genomic control probe"),
        ("GenomicControl_00001", "genomic control probe"),
        ("EPCAM", ""),
        ("BLANKET1", ""),
        ("ANTXR1", ""),
        ("NEGR1", ""),
    ],
)
def test_controls_are_told_by_name(name, kind):
    assert control_kind(name) == kind


def test_categories_tell_what_names_do_not(tmp_path):
    path = tmp_path / "transcripts.parquet"
    category = ["predesigned_gene", "custom_gene", "genomic_control_probe", None, None]
    names = ["A", "B", "C", "D", "E"]
    write(path, names, [1] * 5, [1] * 5, [40] * 5, codeword_category=category, is_gene=[True, True, False, True, False])
    pooled = pool_transcripts(path, 10.0)
    assert pooled.genes == ["A", "B", "D"]
    assert pooled.left_out == {"genomic control probe": 1, "not a gene": 1}
    write(path, names, [1] * 5, [1] * 5, [40] * 5, is_gene=[True, False, True, True, True])
    assert pool_transcripts(path, 10.0, kinds={"A": "antibody"}).left_out == {"antibody": 1, "not a gene": 1}


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_names_in_every_type_of_every_version(tmp_path, kind):
    path = tmp_path / "transcripts.parquet"
    names = pa.array(["A", "B", "A"]).cast(kind if not pa.types.is_dictionary(kind) else pa.string())
    names = names.dictionary_encode() if pa.types.is_dictionary(kind) else names
    floats = {name: np.float64([1, 2, 3]) for name in ("x_location", "y_location")}
    pq.write_table(pa.table({"feature_name": names, **floats, "qv": [40, 40, 20]}), path)
    pooled = pool_transcripts(path, 10.0)
    assert pooled.genes == ["A", "B"]
    np.testing.assert_array_equal(pooled.counts.toarray(), [[2, 1]])


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "transcripts.parquet"
    write(path, ["A"] * 100, range(100), range(100), [40] * 100)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-5], b"", b"PAR1" + whole[4:600] * 2):
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"transcripts\.parquet is truncated or no table of transcripts"):
            pool_transcripts(path, 10.0)
    for x in (np.nan, np.inf, 1e9):
        write(path, ["A", "B"], [1, x], [1, 1], [40, 40])
        with pytest.raises(DataError, match="which is on no slide"):
            pool_transcripts(path, 10.0)
    write(path, ["A", None], [1, 1], [1, 1], [40, 40])
    with pytest.raises(DataError, match="a transcript without feature_name"):
        pool_transcripts(path, 10.0)
    pq.write_table(pa.table({"feature_name": ["A"], "x_location": [1.0], "y_location": [1.0]}), path)
    with pytest.raises(DataError, match="no column 'qv'"):
        pool_transcripts(path, 10.0)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Three times the transcripts in the same squares take about the same memory, of NumPy and of Arrow."""
    rng = np.random.default_rng(0)
    peaks = []
    for n in (1_000_000, 3_000_000):
        path = tmp_path / f"{n}.parquet"
        columns = {"feature_name": pa.array(rng.integers(0, 300, n)).cast(pa.string())}
        columns |= {name: pa.array(rng.uniform(0, 2000, n), pa.float32()) for name in ("x_location", "y_location")}
        pq.write_table(pa.table(columns | {"qv": pa.array(np.full(n, 40, np.float32))}), path, row_group_size=100_000)
        before = pa.default_memory_pool()
        counted = pa.proxy_memory_pool(before)
        pa.set_memory_pool(counted)
        tracemalloc.start()
        try:
            pooled = pool_transcripts(path, 100.0, batch=50_000)
            peaks.append((tracemalloc.get_traced_memory()[1], counted.max_memory()))
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)
        assert pooled.counts.sum() == n
    for small, large in zip(*peaks, strict=True):
        assert 0 < large < 1.1 * small
