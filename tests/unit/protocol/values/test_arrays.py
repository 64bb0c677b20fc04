"""Arrays and frames arrive with their dtype, shape and order; what needs code to be made again is refused."""

from __future__ import annotations

import contextlib
import datetime
import decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.extra import pandas as hpd

from batchflow.protocol.values.encoding import Decoder, Encoded, Encoder
from batchflow.protocol.values.misfits import TooLarge, Undecodable, Unencodable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa
else:
    np, pd, pl, pa = (pytest.importorskip(name) for name in ("numpy", "pandas", "polars", "pyarrow"))


def travel(value: Any, **options: Any) -> Any:
    return Decoder().decode(Encoder(**options).encode(value).join())


DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.array_dtypes(subtype_strategy=hnp.scalar_dtypes(), max_size=3),
    st.sampled_from([np.dtype(">f8"), np.dtype("longdouble"), np.dtype("M8[ns]"), np.dtype("U0")]),
)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)), st.data())
def test_arrays_arrive_as_they_were(array: Any, data: st.DataObject) -> None:
    """Every dtype of numpy without pointers, of any shape, transposed and sliced."""
    if array.ndim and data.draw(st.booleans()):
        array = array.T
    if array.ndim and data.draw(st.booleans()):
        array = array[::-2]
    made = travel(array)
    assert (made.dtype, made.shape, made.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert made.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc
    assert made.flags.writeable
    if array.size:
        scalar = array.flat[0]
        assert type(travel([scalar])[0]) is type(scalar)
        if array.dtype.char not in "gG":  # whose padding is anything
            assert travel([scalar])[0].tobytes() == scalar.tobytes()


def test_an_array_lies_in_the_bytes_that_came() -> None:
    """It is not copied where the bytes can be written to, and what was sent is not either."""
    array = np.arange(1000.0)
    encoded = Encoder().encode(array)
    assert any(isinstance(piece, memoryview) and np.shares_memory(array, piece) for piece in encoded.pieces)
    data = bytearray(encoded.join())
    assert np.shares_memory(Decoder().decode(data), np.frombuffer(data, "u1"))


COLUMNS = [
    hpd.column("i", dtype="int32"),
    hpd.column("f", dtype=float),
    hpd.column("t", elements=st.one_of(st.text(max_size=3), st.none()), dtype=object),
    hpd.column("d", dtype="datetime64[ns]"),
]


@settings(max_examples=15, deadline=None)
@given(
    hpd.data_frames(COLUMNS, index=hpd.range_indexes(max_size=5)), st.sampled_from([list("iftd"), ["i"], []])
)
def test_frames_arrive_as_they_were(frame: Any, columns: list[str]) -> None:
    """Values, dtypes, columns and index."""
    frame = frame[columns]
    pd.testing.assert_frame_equal(travel(frame), frame)
    for name in columns:
        pd.testing.assert_series_equal(travel(frame[name]), frame[name])


def _wide() -> Any:
    days = pd.date_range("2024-01-01", periods=2, tz="Europe/Berlin")
    return pd.DataFrame(
        {
            "text": ["x", None],
            "string": pd.array(["x", None], dtype="string"),
            "category": pd.Categorical(["u", "v"], categories=["v", "u"], ordered=True),
            "zoned": days,
            "int": pd.array([1, None], dtype="Int64"),
            "bool": pd.array([True, None], dtype="boolean"),
            "float": pd.array([1.5, None], dtype="Float32"),
            "mixed": [b"1", (1, decimal.Decimal("1.10"))],
            "period": pd.period_range("2024", periods=2, freq="M"),
            "interval": pd.interval_range(0, 2),
            "arrow": pd.array([1, None], dtype=pd.ArrowDtype(pa.int32())),
            "span": pd.to_timedelta([1, 2], unit="s"),
            "sparse": pd.arrays.SparseArray([0, 1]),
        },
        index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None]),
    )


FRAMES = {
    "of every type": _wide(),
    "transposed": _wide().T,
    "without anything": pd.DataFrame(),
    "without columns": pd.DataFrame(index=range(3)),
    "with a name twice": pd.DataFrame(np.zeros((3, 2)), columns=["a", "a"]),
    "by day": pd.DataFrame({1: [1, 2]}, index=pd.date_range("2024", periods=2, freq="D", name="day")),
    "by category": pd.DataFrame({"a": [1]}, index=pd.CategoricalIndex(["u"])),
}


@pytest.mark.parametrize("name", FRAMES)
def test_rarer_frames_arrive_as_they_were(name: str) -> None:
    """Every kind of column and of index."""
    pd.testing.assert_frame_equal(travel(FRAMES[name]), FRAMES[name])
    pd.testing.assert_index_equal(travel(FRAMES[name].index), FRAMES[name].index)


def test_attributes_of_a_frame_arrive() -> None:
    """They are any values themselves."""
    frame = pd.DataFrame({"a": [1]})
    frame.attrs = {"unit": ("m", 1)}
    assert travel(frame).attrs == {"unit": ("m", 1)}


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2024-01-01 01:02:03.000000004", tz="Europe/Berlin"),
        pd.Timestamp("2024-01-01"),
        pd.Timedelta("1.5s"),
        pd.Period("2024-03", "M"),
        pd.Interval(0, 1, "both"),
    ],
    ids=repr,
)
def test_scalars_of_pandas_arrive_as_they_were(value: Any) -> None:
    """They are subclasses of datetime's, with nanoseconds."""
    made = travel([value])[0]
    assert type(made) is type(value)
    assert made == value
    assert travel([pd.NaT, pd.NA]) == [pd.NaT, pd.NA] or travel([pd.NA])[0] is pd.NA


def test_polars_frames_arrive_as_they_were() -> None:
    """By polars' own Arrow streams; pyarrow is not needed."""
    frame = pl.DataFrame(
        {
            "int": [1, None],
            "list": [[1], [2, 3]],
            "date": [datetime.date(2024, 1, 1)] * 2,
            "category": pl.Series(["u", "v"], dtype=pl.Categorical),
            "enum": pl.Series(["u", "v"], dtype=pl.Enum(["v", "u"])),
            "decimal": [decimal.Decimal("1.1")] * 2,
            "zoned": pl.Series([datetime.datetime(2024, 1, 1)] * 2).dt.replace_time_zone("Europe/Berlin"),
        }
    )
    made = travel([frame, frame["list"]])
    assert made[0].schema == frame.schema
    assert made[0].equals(frame, null_equal=True)
    assert made[1].equals(frame["list"])
    assert made[1].name == "list"


def test_arrow_tables_arrive_as_they_were() -> None:
    """Tables, batches and arrays."""
    table = pa.table({"a": [1, None], "b": [["x"], []]})
    made = travel([table, table.to_batches()[0], table["a"], pa.array([1, None])])
    assert made[0].equals(table)
    assert made[1].equals(table.to_batches()[0])
    assert made[2].equals(table["a"])
    assert made[3].equals(pa.array([1, None]))


class _Mine(pa.ExtensionType):  # type: ignore[misc]
    refuses = False

    def __init__(self) -> None:
        super().__init__(pa.int32(), "mine")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, data: bytes) -> Any:
        if cls.refuses:
            raise AssertionError("no code of an extension runs")
        return cls()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": np.array([object()])}, 'result["a"] is an array of objects'),
        (np.zeros(1, [("x", "O")]), "array of objects"),
        (np.ma.array([1], mask=[True]), "masked array"),
        (pd.DataFrame({"a": [1, object()]}), 'result["a"][1] is of type object'),
        (pd.DataFrame({"a": [1], ("b", 1): [print]}), "result[('b', 1)][0] is of type builtin"),
        (pl.DataFrame({"o": [object()]}), 'result["o"] has the dtype Object'),
        (pl.DataFrame({"a": [1]}).lazy(), "did not run"),
        (
            pa.table({"m": pa.ExtensionArray.from_storage(_Mine(), pa.array([1], pa.int32()))}),
            "extension type",
        ),
    ],
)
def test_what_only_code_could_make_is_refused(value: Any, words: str) -> None:
    """With its place."""
    with pytest.raises(Unencodable) as caught:
        travel(value)
    assert words in caught.value.text("result")


@pytest.mark.parametrize(
    "value",
    [
        np.broadcast_to(np.zeros(1), (10**9,)),
        pd.DataFrame({"a": np.zeros(1000), "b": np.zeros(1000)}),
        pl.DataFrame({"a": np.zeros(2000)}),
        pa.table({"a": np.zeros(2000)}),
    ],
    ids=["array that is larger than its memory", "pandas", "polars", "arrow"],
)
def test_a_large_value_is_refused_before_it_is_copied(value: Any) -> None:
    """By the bytes that it would take."""
    with pytest.raises(TooLarge, match="the limit is 10000"):
        travel({"a": value}, limit=10_000)


@pytest.mark.parametrize("kind", ["$arrow", "$polars"])
def test_the_code_of_an_extension_type_does_not_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the type is registered where the stream is read."""
    table = pa.table({"m": pa.ExtensionArray.from_storage(_Mine(), pa.array([1], pa.int32()))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = Encoded(b'{"%s":["table",0]}' % kind.encode(), [memoryview(sink.getvalue())]).join()
    pa.register_extension_type(_Mine())
    monkeypatch.setattr(_Mine, "refuses", True)
    try:
        with pytest.raises(Undecodable, match="extension type"):
            Decoder().decode(data)
    finally:
        pa.unregister_extension_type("mine")


def test_arrays_of_objects_are_not_made_from_bytes() -> None:
    """Whatever the tree says: pointers would be read from the buffer."""
    for dtype in (b'"|O"', b'[["x","|O"]]'):
        data = Encoded(b'{"$array":[' + dtype + b',[1],"C",0]}', [memoryview(bytes(8))]).join()
        with pytest.raises(Undecodable, match="objects"):
            Decoder().decode(data)


@pytest.mark.parametrize("shape", [b"[2]", b"[-1]", b"[1e9]", b"[4611686018427387904]", b'"x"', b"[0]"])
def test_an_array_that_lies_about_its_size_is_refused(shape: bytes) -> None:
    """Nothing beside the buffer is read."""
    data = Encoded(b'{"$array":["<f8",' + shape + b',"C",0]}', [memoryview(bytes(8))]).join()
    with pytest.raises(Undecodable):
        Decoder().decode(data)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_damaged_frames_are_refused_and_raise_nothing_else(data: st.DataObject) -> None:
    """Of pandas and polars, Arrow streams included."""
    value = [_wide(), pl.DataFrame({"a": ["x", "y"]})][data.draw(st.integers(0, 1))]
    whole = bytearray(Encoder().encode(value).join())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Undecodable):
        Decoder().decode(whole)
