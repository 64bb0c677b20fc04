"""The encoding of what numpy, pandas, polars and pyarrow make; see `encoding`.

A library is used when a value of it comes, and is imported when one is to be made. No pickle is in any of it.

======================================  =============================================================
in the tree                             value
======================================  =============================================================
``{"$array": [dtype, shape, o, n]}``    a numpy array: buffer n, in the order o, "C" or "F"
``{"$scalar": [dtype, hexadecimal]}``   a numpy scalar
``{"$dtype": dtype}``                   a numpy dtype, as the header of the .npy format has it
``{"$pandas": [kind, ...]}``            a frame, series, index, timestamp, ... by its columns
``{"$polars": [kind, n]}``              a frame or series: an Arrow stream in buffer n
``{"$arrow": [kind, n]}``               a table or an array of pyarrow: an Arrow stream in buffer n
======================================  =============================================================

Columns of pandas keep the layout that they have in memory: those of numpy's types are numpy arrays,
categories are codes and an index, nullable numbers are values and a mask, columns of Arrow's types are Arrow
streams. So a frame needs pyarrow only where its columns do.

Refused, because only code could make them again: arrays of objects, and extension types.
"""

from __future__ import annotations

import sys
from functools import partial
from io import BytesIO

from batchflow.protocol.values.misfits import Misfit, Undecodable, Unencodable, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from batchflow.protocol.values.trees import TreeReader, TreeWriter

_EXTENSION_NAME: Final = b"ARROW:extension:name"
_EXTENSION: Final = "an extension type, which only its own code can make again"


def encode(encoder: TreeWriter, value: Any) -> Any:
    """Return the tree of a value of one of the libraries; None when it is none. Raises `Misfit`."""
    for name, write in _LIBRARIES.items():
        library = sys.modules.get(name)
        if library is not None:
            tree = encoder.attempt(partial(write, encoder, library, value), value)
            if tree is not None:
                return tree
    return None


# ---- numpy


def _write_numpy(encoder: TreeWriter, numpy: Any, value: Any) -> Any:
    if isinstance(value, numpy.ndarray):
        return _write_array(encoder, numpy, value)
    if isinstance(value, numpy.generic):
        dtype = _dtype(numpy, value.dtype)
        return {"$scalar": [dtype, numpy.asarray(value).tobytes().hex()]}
    if isinstance(value, numpy.dtype):
        return {"$dtype": _dtype(numpy, value)}
    return None


def _write_array(encoder: TreeWriter, numpy: Any, value: Any) -> Any:
    if isinstance(value, numpy.ma.MaskedArray):
        raise Unencodable("is a masked array, which has no encoding", "pass its data and its mask")
    value = value.view(numpy.ndarray) if type(value) is not numpy.ndarray else value
    dtype = _dtype(numpy, value.dtype)
    shape = list(value.shape)
    flags = value.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    if not flags.c_contiguous and not flags.f_contiguous:
        encoder.fits(value.nbytes)  # before the copy, because a broadcast array is larger than its memory
        value = numpy.ascontiguousarray(value)
    if value.nbytes == 0:
        return {"$array": [dtype, shape, order, encoder.buffer(b"")]}
    flat = value.reshape(-1, order=order).view(numpy.uint8)
    return {"$array": [dtype, shape, order, encoder.buffer(flat)]}


def _dtype(numpy: Any, dtype: Any) -> Any:
    """Return a dtype as the .npy format describes it. Raises `Unencodable` where that has pointers."""
    if dtype.hasobject:
        raise Unencodable(
            "is an array of objects, which only a pickle could hold",
            "pass value.tolist(), or an array of another dtype",
        )
    if dtype.kind not in "biufcmMSUV" or (dtype.kind == "V" and type(dtype).__module__[:5] != "numpy"):
        raise Unencodable(f"has the dtype {dtype}, {_EXTENSION}", "convert it with astype")
    return numpy.lib.format.dtype_to_descr(dtype)


def _numpy_dtype(content: Any) -> Any:
    import numpy

    dtype = numpy.lib.format.descr_to_dtype(_descr(content))
    if dtype.hasobject:
        raise Undecodable("an array of objects")
    return dtype


def _descr(content: Any) -> Any:
    """Return a description with the tuples that JSON has as lists: fields, and shapes in them."""
    if type(content) is str:
        return content
    if content and type(content[0]) is list:
        return [
            (
                tuple(field[0]) if type(field[0]) is list else field[0],
                _descr(field[1]),
                *(tuple(part) if type(part) is list else part for part in field[2:]),
            )
            for field in content
        ]
    kind, shape = content
    return (_descr(kind), tuple(shape) if type(shape) is list else shape)


def _read_array(decoder: TreeReader, content: Any) -> Any:
    import numpy

    dtype, shape, order, index = content
    buffer = decoder.buffer(index)
    if any(type(side) is not int or side < 0 for side in shape):
        raise Undecodable(f"an array of the shape {shape!r}"[:100])
    made: Any = numpy.ndarray(tuple(shape), _numpy_dtype(dtype), buffer, order=order)
    if made.nbytes != buffer.nbytes:
        raise Undecodable(f"an array of {made.nbytes} bytes in a buffer of {buffer.nbytes}")
    return made if made.flags.writeable else made.copy(order="K")


def _read_scalar(decoder: TreeReader, content: Any) -> Any:
    import numpy

    dtype, data = content
    return numpy.ndarray((), _numpy_dtype(dtype), bytes.fromhex(data))[()]


# ---- pandas


def _write_pandas(encoder: TreeWriter, pandas: Any, value: Any) -> Any:
    if isinstance(value, pandas.DataFrame):
        return {"$pandas": _frame(encoder, pandas, value)}
    if isinstance(value, pandas.Series):
        index = encoder.below(".index", value.index)
        column = _column(encoder, pandas, value.array)
        return {
            "$pandas": ["series", index, column, encoder.below(".name", value.name), _attrs(encoder, value)]
        }
    if isinstance(value, pandas.Index):
        return {"$pandas": _index(encoder, pandas, value)}
    if isinstance(value, pandas.api.extensions.ExtensionArray):
        return {"$pandas": ["array", _column(encoder, pandas, value)]}
    if value is pandas.NA or value is pandas.NaT:
        return {"$pandas": ["NA" if value is pandas.NA else "NaT"]}
    return _write_pandas_scalar(encoder, pandas, value)


def _write_pandas_scalar(encoder: TreeWriter, pandas: Any, value: Any) -> Any:
    if isinstance(value, pandas.Timestamp):
        from batchflow.protocol.values.zones import zone_of

        moment = value.tz_convert(None) if value.tzinfo is not None else value
        number = int(moment.to_datetime64().astype("int64"))
        return {"$pandas": ["timestamp", number, value.unit, zone_of(encoder, value.tzinfo)]}
    if isinstance(value, pandas.Timedelta):
        return {"$pandas": ["timedelta", int(value.to_timedelta64().astype("int64")), value.unit]}
    if isinstance(value, pandas.Period):
        return {"$pandas": ["period", value.ordinal, value.freqstr]}
    if isinstance(value, pandas.Interval):
        return {"$pandas": ["interval", encoder.tree(value.left), encoder.tree(value.right), value.closed]}
    return None


def _attrs(encoder: TreeWriter, value: Any) -> Any:
    return encoder.below(".attrs", value.attrs) if value.attrs else None


def _frame(encoder: TreeWriter, pandas: Any, frame: Any) -> list[Any]:
    numpy = sys.modules["numpy"]
    columns = encoder.below(".columns", frame.columns)
    index = encoder.below(".index", frame.index)
    attrs = _attrs(encoder, frame)
    dtypes = set(frame.dtypes)
    if len(dtypes) == 1 and isinstance(dtype := dtypes.pop(), numpy.dtype) and not dtype.hasobject:
        return ["block", columns, index, _write_array(encoder, numpy, frame.to_numpy()), attrs]
    made = []
    for place in range(frame.shape[1]):
        try:
            made.append(_column(encoder, pandas, frame.iloc[:, place].array))
        except Misfit as error:
            raise error.below(step(frame.columns[place])) from None
    return ["frame", columns, index, made, attrs]


def _index(encoder: TreeWriter, pandas: Any, index: Any) -> list[Any]:
    if isinstance(index, pandas.MultiIndex):
        levels = [_index(encoder, pandas, level) for level in index.levels]
        codes = [encoder.tree(sys.modules["numpy"].asarray(code)) for code in index.codes]
        return ["multi", levels, codes, encoder.items(list(index.names))]
    name = encoder.below(".name", index.name)
    if isinstance(index, pandas.RangeIndex):
        return ["range", index.start, index.stop, index.step, name]
    freq = getattr(index, "freq", None) if not isinstance(index, pandas.PeriodIndex) else None
    return ["index", _column(encoder, pandas, index.array), name, None if freq is None else freq.freqstr]


def _column(encoder: TreeWriter, pandas: Any, array: Any) -> list[Any]:
    """Return the tree of an array of pandas: its kind and what that needs."""
    kinds = pandas.arrays
    dtype = array.dtype
    if isinstance(array, kinds.NumpyExtensionArray):
        values = array.to_numpy()
        if values.dtype == object:
            return ["object", encoder.items(values.tolist())]
        return ["numpy", encoder.tree(values)]
    if isinstance(array, kinds.DatetimeArray):
        zone = getattr(dtype, "tz", None)
        return ["datetime", encoder.tree(array.view("int64")), array.unit, _zone(encoder, zone)]
    if isinstance(array, kinds.TimedeltaArray):
        return ["timedelta", encoder.tree(array.view("int64")), array.unit]
    if isinstance(array, pandas.Categorical):
        categories = _index(encoder, pandas, array.categories)
        return ["category", categories, encoder.tree(array.codes), bool(array.ordered)]
    if isinstance(array, (kinds.IntegerArray, kinds.FloatingArray, kinds.BooleanArray)):
        mask = array.isna()
        plain = array.to_numpy(dtype.numpy_dtype, na_value=dtype.numpy_dtype.type(0))
        return ["masked", encoder.tree(plain), encoder.tree(mask)]
    if isinstance(dtype, pandas.StringDtype):
        texts = encoder.items(array.to_numpy(object, na_value=None).tolist())
        return ["string", texts, dtype.storage, dtype.na_value is pandas.NA]
    if isinstance(dtype, pandas.ArrowDtype):
        return ["arrow", _arrow_stream(encoder, sys.modules["pyarrow"], array.__arrow_array__())]
    if isinstance(array, kinds.PeriodArray):
        return ["period", encoder.tree(array.asi8), str(dtype)]
    if isinstance(array, kinds.IntervalArray):
        ends = [_index(encoder, pandas, end) for end in (array.left, array.right)]
        return ["interval", *ends, array.closed]
    if isinstance(array, kinds.SparseArray):
        return ["sparse", encoder.tree(array.to_dense()), encoder.tree(array.fill_value)]
    raise Unencodable(f"has the dtype {dtype}, {_EXTENSION}", "convert it with astype")


def _zone(encoder: TreeWriter, zone: Any) -> Any:
    from batchflow.protocol.values.zones import zone_of

    return zone_of(encoder, zone)


def _read_pandas(decoder: TreeReader, content: Any) -> Any:
    import pandas

    kind = content[0]
    if kind == "NA":
        return pandas.NA
    if kind == "NaT":
        return pandas.NaT
    if (read := _PANDAS.get(kind)) is None:
        raise Undecodable(f"a value of pandas of the kind {kind!r}, which this batchflow does not know")
    return read(decoder, pandas, *content[1:])


def _with_attrs(decoder: TreeReader, made: Any, attrs: Any) -> Any:
    if attrs is not None:
        made.attrs = decoder.value(attrs)
    return made


def _read_frame(decoder: TreeReader, pandas: Any, columns: Any, index: Any, trees: Any, attrs: Any) -> Any:
    made = [_made(decoder, pandas, tree) for tree in trees]
    # A series, because a frame would infer another dtype for an array of objects.
    parts = {place: pandas.Series(part, dtype=part.dtype, copy=False) for place, part in enumerate(made)}
    frame = pandas.DataFrame(parts, copy=False) if parts else pandas.DataFrame(index=decoder.value(index))
    if parts:
        frame.index = decoder.value(index)
    frame.columns = decoder.value(columns)
    return _with_attrs(decoder, frame, attrs)


def _read_block(decoder: TreeReader, pandas: Any, columns: Any, index: Any, tree: Any, attrs: Any) -> Any:
    frame = pandas.DataFrame(
        decoder.value(tree), index=decoder.value(index), columns=decoder.value(columns), copy=False
    )
    return _with_attrs(decoder, frame, attrs)


def _read_series(decoder: TreeReader, pandas: Any, index: Any, tree: Any, name: Any, attrs: Any) -> Any:
    made = _made(decoder, pandas, tree)
    series = pandas.Series(
        made, index=decoder.value(index), name=decoder.value(name), dtype=made.dtype, copy=False
    )
    return _with_attrs(decoder, series, attrs)


def _read_multi(decoder: TreeReader, pandas: Any, levels: Any, codes: Any, names: Any) -> Any:
    made = [_read_pandas(decoder, level) for level in levels]
    return pandas.MultiIndex(made, decoder.items(codes), names=decoder.items(names))


def _read_range(decoder: TreeReader, pandas: Any, start: int, stop: int, step: int, name: Any) -> Any:
    return pandas.RangeIndex(start, stop, step, name=decoder.value(name))


def _read_index(decoder: TreeReader, pandas: Any, tree: Any, name: Any, freq: str | None) -> Any:
    made = _made(decoder, pandas, tree)
    if freq is not None:
        kind = pandas.DatetimeIndex if tree[0] == "datetime" else pandas.TimedeltaIndex
        return kind(made, freq=freq, name=decoder.value(name))
    return pandas.Index(made, dtype=made.dtype, name=decoder.value(name), copy=False, tupleize_cols=False)


def _made(decoder: TreeReader, pandas: Any, content: Any) -> Any:
    """Return the array of pandas that a tree stands for."""
    kind, *parts = content
    if (read := _COLUMNS.get(kind)) is None:
        raise Undecodable(f"a column of the kind {kind!r}, which this batchflow does not know")
    return read(decoder, pandas, *parts)


def _made_objects(decoder: TreeReader, pandas: Any, trees: Any) -> Any:
    import numpy

    made = numpy.empty(len(trees), object)
    for place, item in enumerate(decoder.items(trees)):
        made[place] = item
    return made


def _made_datetime(decoder: TreeReader, pandas: Any, tree: Any, unit: str, zone: Any) -> Any:
    from batchflow.protocol.values.zones import zone_from

    made = pandas.array(decoder.value(tree).view(f"M8[{unit}]"), dtype=f"M8[{unit}]")
    if zone is None:
        return made
    return pandas.DatetimeIndex(made).tz_localize("UTC").tz_convert(zone_from(decoder, zone)).array


def _made_timedelta(decoder: TreeReader, pandas: Any, tree: Any, unit: str) -> Any:
    return pandas.array(decoder.value(tree).view(f"m8[{unit}]"), dtype=f"m8[{unit}]")


def _made_category(decoder: TreeReader, pandas: Any, categories: Any, codes: Any, ordered: bool) -> Any:
    dtype = pandas.CategoricalDtype(_read_pandas(decoder, categories), ordered)
    return pandas.Categorical.from_codes(decoder.value(codes), dtype=dtype)


def _made_masked(decoder: TreeReader, pandas: Any, values: Any, mask: Any) -> Any:
    plain = decoder.value(values)
    kinds = {"b": pandas.arrays.BooleanArray, "f": pandas.arrays.FloatingArray}
    return kinds.get(plain.dtype.kind, pandas.arrays.IntegerArray)(plain, decoder.value(mask))


def _made_string(decoder: TreeReader, pandas: Any, texts: Any, storage: str, is_na: bool) -> Any:
    if storage == "pyarrow" and not _is_there("pyarrow"):
        storage = "python"
    dtype = pandas.StringDtype(storage, na_value=pandas.NA if is_na else float("nan"))
    return pandas.array(decoder.items(texts), dtype=dtype)


def _is_there(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _made_arrow(decoder: TreeReader, pandas: Any, index: Any) -> Any:
    return pandas.arrays.ArrowExtensionArray(_arrow_table(decoder, index).column(0))


def _made_period(decoder: TreeReader, pandas: Any, ordinals: Any, dtype: str) -> Any:
    freq = pandas.PeriodDtype(dtype.removeprefix("period[").removesuffix("]")).freq
    return pandas.PeriodIndex.from_ordinals(decoder.value(ordinals), freq=freq).array


def _made_interval(decoder: TreeReader, pandas: Any, left: Any, right: Any, closed: str) -> Any:
    ends = [_read_pandas(decoder, end) for end in (left, right)]
    return pandas.arrays.IntervalArray.from_arrays(*ends, closed=closed)


def _made_sparse(decoder: TreeReader, pandas: Any, dense: Any, fill: Any) -> Any:
    return pandas.arrays.SparseArray(decoder.value(dense), fill_value=decoder.value(fill))


_PANDAS: Final[dict[str, Callable[..., Any]]] = {
    "frame": _read_frame,
    "block": _read_block,
    "series": _read_series,
    "multi": _read_multi,
    "range": _read_range,
    "index": _read_index,
    "array": lambda decoder, pandas, tree: _made(decoder, pandas, tree),
    "timestamp": lambda decoder, pandas, number, unit, zone: _timestamp(decoder, pandas, number, unit, zone),
    "timedelta": lambda decoder, pandas, number, unit: pandas.Timedelta(_ticks("m8", number, unit)),
    "period": lambda decoder, pandas, ordinal, freq: pandas.Period(ordinal=ordinal, freq=freq),
    "interval": lambda decoder, pandas, left, right, closed: pandas.Interval(
        decoder.value(left), decoder.value(right), closed
    ),
}
_COLUMNS: Final[dict[str, Callable[..., Any]]] = {
    "object": _made_objects,
    "numpy": lambda decoder, pandas, tree: decoder.value(tree),
    "datetime": _made_datetime,
    "timedelta": _made_timedelta,
    "category": _made_category,
    "masked": _made_masked,
    "string": _made_string,
    "arrow": _made_arrow,
    "period": _made_period,
    "interval": _made_interval,
    "sparse": _made_sparse,
}


def _timestamp(decoder: TreeReader, pandas: Any, number: int, unit: str, zone: Any) -> Any:
    from batchflow.protocol.values.zones import zone_from

    made = pandas.Timestamp(_ticks("M8", number, unit))
    return made if zone is None else made.tz_localize("UTC").tz_convert(zone_from(decoder, zone))


def _ticks(kind: str, number: int, unit: str) -> Any:
    import numpy

    return numpy.array(number, "i8").view(f"{kind}[{unit}]")[()]


# ---- polars and pyarrow


def _write_polars(encoder: TreeWriter, polars: Any, value: Any) -> Any:
    if isinstance(value, polars.LazyFrame):
        raise Unencodable("is a query that did not run", "pass frame.collect()")
    if isinstance(value, polars.Series):
        kind, frame = "series", value.to_frame()
    elif isinstance(value, polars.DataFrame):
        kind, frame = "frame", value
    else:
        return None
    extension = getattr(polars, "BaseExtension", ())
    for name, dtype in frame.schema.items():
        if dtype == polars.Object or isinstance(dtype, extension):
            raise Unencodable(f"has the dtype {dtype}, {_EXTENSION}", "cast it", step(name))
    encoder.fits(int(frame.estimated_size()))
    stream = BytesIO()
    frame.write_ipc_stream(stream)
    return {"$polars": [kind, encoder.buffer(stream.getbuffer())]}


def _read_polars(decoder: TreeReader, content: Any) -> Any:
    import polars

    kind, index = content
    stream = BytesIO(_arrow_buffer(decoder, index))
    try:
        frame = polars.read_ipc_stream(stream)
    except polars.exceptions.PanicException as error:  # no Exception, and no reason to end the process
        raise Undecodable(f"polars cannot read an Arrow stream: {error}"[:300]) from error
    return frame.to_series() if kind == "series" else frame


def _write_arrow(encoder: TreeWriter, pyarrow: Any, value: Any) -> Any:
    if isinstance(value, pyarrow.Table):
        return {"$arrow": ["table", _arrow_stream(encoder, pyarrow, value)]}
    if isinstance(value, pyarrow.RecordBatch):
        table = pyarrow.Table.from_batches([value])
        return {"$arrow": ["batch", _arrow_stream(encoder, pyarrow, table)]}
    if isinstance(value, pyarrow.ChunkedArray):
        return {"$arrow": ["chunked", _arrow_stream(encoder, pyarrow, value)]}
    if isinstance(value, pyarrow.Array):
        return {"$arrow": ["array", _arrow_stream(encoder, pyarrow, value)]}
    return None


def _arrow_stream(encoder: TreeWriter, pyarrow: Any, value: Any) -> int:
    """Add an Arrow stream of a table, or of an array as its one column; return the buffer's number."""
    table = value if isinstance(value, pyarrow.Table) else pyarrow.table({"": value})
    for field in table.schema:
        if _is_extension(pyarrow, field.type):
            raise Unencodable(f"has the type {field.type}, {_EXTENSION}", "cast it", step(field.name))
    encoder.fits(table.nbytes)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return encoder.buffer(sink.getvalue())


def _is_extension(pyarrow: Any, kind: Any) -> bool:
    if isinstance(kind, pyarrow.BaseExtensionType):
        return True
    if pyarrow.types.is_dictionary(kind):
        return _is_extension(pyarrow, kind.value_type)
    return any(_is_extension(pyarrow, kind.field(place).type) for place in range(kind.num_fields))


def _arrow_buffer(decoder: TreeReader, index: Any) -> memoryview:
    """Return an Arrow stream whose schema names no extension type, because reading that may run its code."""
    stream = decoder.buffer(index)
    length = int.from_bytes(stream[4:8], "little")
    if bytes(stream[:4]) != b"\xff\xff\xff\xff" or _EXTENSION_NAME in bytes(stream[8 : 8 + length]):
        raise Undecodable("an Arrow stream with an extension type, or none at all")
    return stream


def _arrow_table(decoder: TreeReader, index: Any) -> Any:
    import pyarrow

    # Before 14.0.1 a schema could name a pickle, which was opened (CVE-2023-47248).
    if [int(part) for part in pyarrow.__version__.split(".")[:1]] < [15]:
        raise Undecodable(f"pyarrow {pyarrow.__version__} is too old to read data of others: 15 is needed")
    stream = _arrow_buffer(decoder, index)
    with pyarrow.ipc.open_stream(pyarrow.py_buffer(stream)) as reader:
        table = reader.read_all()
    table.validate(full=True)
    return table


def _read_arrow(decoder: TreeReader, content: Any) -> Any:
    kind, index = content
    table = _arrow_table(decoder, index)
    if kind == "table":
        return table
    if kind == "batch":
        return table.combine_chunks().to_batches()[0] if table.num_rows else _empty_batch(table)
    return table.column(0) if kind == "chunked" else table.column(0).combine_chunks()


def _empty_batch(table: Any) -> Any:
    import pyarrow

    return pyarrow.RecordBatch.from_arrays(
        [pyarrow.array([], field.type) for field in table.schema], schema=table.schema
    )


_LIBRARIES: Final[dict[str, Callable[[TreeWriter, Any, Any], Any]]] = {
    "numpy": _write_numpy,
    "pandas": _write_pandas,
    "polars": _write_polars,
    "pyarrow": _write_arrow,
}
READERS: Final[dict[str, Callable[[TreeReader, Any], Any]]] = {
    "$array": _read_array,
    "$scalar": _read_scalar,
    "$dtype": lambda decoder, content: _numpy_dtype(content),
    "$pandas": _read_pandas,
    "$polars": _read_polars,
    "$arrow": _read_arrow,
}
