"""One-dimensional TensorStore arrays, on a disk or in a bucket."""

import tensorstore as ts
from etils import epath

_CACHE = ts.Context({"cache_pool": {"total_bytes_limit": 256 << 20}})


def open_array(path: epath.Path, create: type | None = None, chunk: int = 1 << 16) -> ts.TensorStore:
    """A one-dimensional zarr3 array.

    Args:
      path: where it is.
      create: the dtype of a new array, which is empty; None to read one that is there.
      chunk: values a chunk of a new array.

    Raises:
      ValueError: there is no array, or no readable one; also when a chunk of it is read that is damaged or lost.
    """
    # A chunk that got lost must not read as zeros.
    spec = {
        "driver": "zarr3",
        "kvstore": _kvstore(path),
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }
    if create is None:
        return ts.open(spec, read=True, context=_CACHE).result()
    layout = ts.ChunkLayout(chunk_shape=[chunk])
    return ts.open(spec, create=True, dtype=create, shape=[0], chunk_layout=layout).result()


def _kvstore(path: epath.Path) -> str:
    text = str(path)
    return text if "://" in text else f"file://{epath.Path(path).resolve()}"
