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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullres.pipeline.data.image_headers import image_format, oriented_size
from fullres.pipeline.data.images import ImageError
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.layout import Frame
from fullres.pipeline.targets.compute import TargetSpec, targets_of

SCHEMA_VERSION = 1
METADATA_KEY = b"fullres"

# Bytes of targets that are collected before they are compressed and written as one row group.
_ROW_GROUP = 32 << 20
# Where maps are read ahead, by so many threads, which take so many maps at a time.
_READERS, _BATCH = 4, 8
# Of an image's header, its first bytes: mostly its size is there; in JPEG behind EXIF data of up to 64 KiB.
_HEADER = (1 << 10, 256 << 10)

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
    read_ahead: bool = True,
) -> ShardReport:
    """Compute the targets of `frames` and write them to `sink` (a binary file), one row a map.

    `read_ahead`: by threads, which pays where `read` waits for a network. Files in a disk's cache are read in
    less time than it takes to hand one over from a thread.
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
        for frame, contents in _contents(frames, read, _READERS if read_ahead else 0):
            try:
                if isinstance(contents, Exception):
                    raise contents
                data, image_size = contents
                bytes_read += len(data)
                labels = _labels(frame, data, image_size, dataset)
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
    """The "fullres" metadata of a file of targets. Raises ValueError if it is none, or damaged."""
    try:
        return json.loads((pq.read_metadata(file).metadata or {})[METADATA_KEY])
    except (KeyError, pa.ArrowInvalid, OSError) as error:  # an OSError where only the footer is damaged
        raise ValueError("not a file of fullres targets") from error


def _contents(
    frames: Sequence[Frame], read: Read, readers: int
) -> Iterator[tuple[Frame, tuple[bytes, tuple[int, int] | None] | Exception]]:
    """Each frame with its label file's bytes and its image's size, or why there are none."""

    def contents(frame: Frame) -> tuple[bytes, tuple[int, int] | None] | Exception:
        try:
            return read(str(frame.labels), None), _size(frame.image, read)
        except (ImageError, OSError) as error:
            return error

    def batch(start: int) -> list[tuple[Frame, Any]]:
        return [(frame, contents(frame)) for frame in frames[start : start + _BATCH]]

    starts = iter(range(0, len(frames), _BATCH))
    if readers == 0:
        for start in starts:
            yield from batch(start)
        return
    with ThreadPoolExecutor(readers) as threads:
        waiting = deque(threads.submit(batch, start) for start in islice(starts, readers))
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(threads.submit(batch, start) for start in islice(starts, 1))
            yield from results


def _size(image: Path, read: Read) -> tuple[int, int] | None:
    """(H, W) as its header says, if it does. Raises ImageError for what is no image, OSError."""
    for first in _HEADER:
        data = read(str(image), first)
        if image_format(data) is None:
            raise ImageError(f"{image}: {'not an image' if data else 'empty file'}")
        if size := oriented_size(data):
            return size
    return None


def _labels(frame: Frame, data: bytes, image_size: tuple[int, int] | None, dataset: Dataset) -> np.ndarray:
    """The frame's trainIds. Raises ImageError or ValueError."""
    labels = dataset.decode(data, frame.labels)
    if image_size not in (None, labels.shape):
        (h, w), (ih, iw) = labels.shape, image_size
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
