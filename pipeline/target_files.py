"""Targets in Parquet: the schema, and one file of them from the label maps of a shard.

Columns: `key` (the map's name in its data set), `height`, `width`, `phi` as a fixed-shape tensor, and each
target whose size follows the map's as a struct {data: list of values in C order, shape}. The file's key-value
metadata under "fullres" is JSON: schema version, code version, every parameter, and the maps left out with
their reasons.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.layout import Frame
from fullres.pipeline.image_headers import oriented_size
from fullres.pipeline.images import ImageError
from fullres.pipeline.targets import TargetSpec, targets_of

SCHEMA_VERSION = 1
METADATA_KEY = b"fullres"

# Bytes of targets that are collected before they are compressed and written as one row group.
_ROW_GROUP = 32 << 20
# Files read ahead of the one that is computed.
_READ_AHEAD = 4
# Of an image's header; its size stands there, behind EXIF data of at most 64 KiB in JPEG.
_HEADER = 256 << 10

# The bytes of a file, at most so many of its first ones. Raises OSError.
Read = Callable[[str, int | None], bytes]


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's label maps. `failures`: label map (or image) -> reason."""

    done: int
    failures: dict[str, str]
    bytes_read: int


def schema(spec: TargetSpec) -> pa.Schema:
    """Columns and types of the files that a specification gives."""
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("phi", pa.fixed_shape_tensor(pa.float32(), (*spec.grid, 2)), nullable=False),
    ]
    if spec.boundary:
        fields.append(pa.field("boundary", _sized(pa.uint8()), nullable=False))
    if spec.distance:
        fields.append(pa.field("distance", _sized(pa.float32()), nullable=False))
    fields += [pa.field(f"cpp_{scale}", _sized(pa.float32()), nullable=False) for scale in spec.cpp]
    return pa.schema(fields)


def parameters(dataset: Dataset, split: str, spec: TargetSpec) -> dict[str, Any]:
    """What determines a file's values, the label maps apart."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fullres_version": version("fullres"),
        "dataset": dataset.name,
        "split": split,
        "classes": list(dataset.classes),
        "ignore_index": dataset.ignore_index,
        **json.loads(json.dumps(asdict(spec))),
    }


def write_targets(
    frames: Sequence[Frame],
    read: Read,
    sink: Any,
    dataset: Dataset,
    spec: TargetSpec,
    settings: dict[str, Any],
    strict: bool = False,
) -> ShardReport:
    """Compute the targets of `frames` and write them to `sink` (a binary file), one row a map.

    Memory is bounded whatever the number of frames. What cannot be used (unreadable or damaged files, label
    ids that do not belong, a map whose image has another size) is left out and reported;
    `strict` stops at the first such, with the file unfinished.
    """
    failures: dict[str, str] = {}
    done = bytes_read = 0
    rows: list[dict[str, Any]] = []
    size = 0
    columns = schema(spec)
    with pq.ParquetWriter(sink, columns, compression="zstd") as writer:
        for frame, contents in _read_ahead(frames, read):
            try:
                if isinstance(contents, Exception):
                    raise contents
                data, header = contents
                bytes_read += len(data)
                labels = _labels(frame, data, header, dataset)
            except (ImageError, ValueError, OSError) as error:
                failures[str(frame.labels)] = str(error)
                if strict:
                    break
                continue
            targets = targets_of(labels, dataset, spec)
            rows.append({"key": frame.key, "height": labels.shape[0], "width": labels.shape[1], **targets})
            size += sum(target.nbytes for target in targets.values())
            done += 1
            if size >= _ROW_GROUP:
                writer.write_table(_table(rows, columns))
                rows, size = [], 0
        if rows:
            writer.write_table(_table(rows, columns))
        settings = {**settings, "failures": failures}
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(settings)})
    return ShardReport(done, failures, bytes_read)


def read_metadata(file: Any) -> dict[str, Any]:
    """The "fullres" metadata of a file of targets. Raises ValueError if it is none."""
    try:
        return json.loads((pq.read_metadata(file).metadata or {})[METADATA_KEY])
    except (KeyError, pa.ArrowInvalid) as error:
        raise ValueError("not a file of fullres targets") from error


def _read_ahead(
    frames: Sequence[Frame], read: Read
) -> Iterator[tuple[Frame, tuple[bytes, bytes] | Exception]]:
    """Each frame with its label file's bytes and the first bytes of its image, or why there are none."""

    def contents(frame: Frame) -> tuple[bytes, bytes] | Exception:
        try:
            return read(str(frame.labels), None), read(str(frame.image), _HEADER)
        except OSError as error:
            return error

    with ThreadPoolExecutor(_READ_AHEAD) as threads:
        left = iter(frames)
        waiting = deque((frame, threads.submit(contents, frame)) for frame in islice(left, _READ_AHEAD))
        while waiting:
            frame, future = waiting.popleft()
            result = future.result()
            waiting.extend((later, threads.submit(contents, later)) for later in islice(left, 1))
            yield frame, result


def _labels(frame: Frame, data: bytes, header: bytes, dataset: Dataset) -> np.ndarray:
    """The frame's trainIds. Raises ImageError or ValueError."""
    labels = dataset.decode(data, frame.labels)
    size = oriented_size(header)
    if size not in (None, labels.shape):
        (h, w), (ih, iw) = labels.shape, size
        raise ImageError(f"{frame.labels}: {w}x{h} pixels, but its image {frame.image} has {iw}x{ih}")
    return labels


def _sized(values: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field("data", pa.large_list(values)), pa.field("shape", pa.list_(pa.int32()))])


def _table(rows: list[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    """Rows of arrays as one table, without a Python object for each value."""
    arrays = []
    for field in columns:
        values = [row[field.name] for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(values)))
        elif pa.types.is_struct(field.type):
            ends = np.cumsum([0] + [v.size for v in values])
            data = pa.LargeListArray.from_arrays(ends, np.concatenate([v.ravel() for v in values]))
            shape = pa.array([v.shape for v in values], pa.list_(pa.int32()))
            arrays.append(pa.StructArray.from_arrays([data, shape], fields=list(field.type)))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, columns)
