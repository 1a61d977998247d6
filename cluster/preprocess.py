"""Targets for whole data sets: label maps in, Parquet out, over a Ray cluster.

The label maps are dealt out to shards by their keys, whatever the number of workers; each shard becomes one
file, `part-00000.parquet` and so on, written whole or not at all. Ray Data gives the shards to its tasks, and
runs those again whose worker or node died: they write the same file with the same values. Started again, the
job does the shards whose file is missing, left maps out, or is of other maps.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any
from zlib import crc32

import ray
import ray.data

from fullres.cluster.memory import keep_freed_memory, peak_resident_bytes, resident_bytes
from fullres.cluster.storage import Storage
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.layout import Found, Frame, match_frames, nothing_found
from fullres.pipeline.images import naming
from fullres.pipeline.target_files import parameters, read_metadata, write_targets
from fullres.pipeline.targets import TargetSpec

# Maps of a shard: enough that starting its task does not count, few enough that a restart repeats little.
_SHARD = (32, 256)
_SHARDS = 64  # of the smallest size, then they grow
# Names that readers of a folder of Parquet files leave out.
_SETTINGS, SUMMARY = "_targets.json", "_summary.json"
# A shard whose workers died so often is the cause, not the victim.
_RETRIES = 10


class TargetsError(Exception):
    """The job cannot go on; one line."""


@dataclass
class Progress:
    """What has happened so far; updated in place. `failures`: file -> reason."""

    maps: int
    before: int = 0  # of an earlier run
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    seconds: float = 0.0
    by_node: dict[str, int] = field(default_factory=dict)  # maps
    resident_bytes: int = 0  # of the worker that reported last
    peak_bytes: int = 0  # resident in a worker at most


def find(root: Storage, dataset: Dataset, split: str) -> Found:
    """The frames of a split below `root`, names relative to it.

    Raises ValueError for an unknown split, FilesError where there is nothing of it, OSError.
    """
    where = dataset.split(split)
    folders = {
        pattern.split("*")[0].rpartition("/")[0] for pattern in (f"{where.images}/", f"{where.labels}/")
    }
    names = {name for folder in folders for name in root.names(folder)}
    listed = None
    if where.lists is not None:
        lists = [
            n
            for n in root.names(str(PurePosixPath(where.lists).parent))
            if PurePosixPath(n).match(where.lists)
        ]
        listed = [line for name in lists for line in root.read(name).decode().splitlines()]
    found = match_frames(dataset, split, names, listed)
    if not found:
        raise nothing_found(dataset, root.location, split)
    return found


def run(
    frames: Sequence[Frame],
    root: Storage,
    out: Storage,
    dataset: Dataset,
    split: str,
    spec: TargetSpec,
    workers: int | None,
    strict: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Targets of all frames on the connected Ray cluster; `workers` None: as many as it has CPUs.

    A map that cannot be used is left out and listed with its reason; `strict` raises instead. Raises
    TargetsError, also where `out` holds targets with other parameters; OSError where it cannot be written.
    """
    settings = parameters(dataset, split, spec)
    shards = _shards(frames, _claim(out, settings, len(frames)))
    progress = Progress(len(frames))
    todo = []
    for index, (shard, is_done) in enumerate(zip(shards, _are_done(out, shards), strict=True)):
        if is_done:
            progress.before += len(shard)
        else:
            todo.append({"index": index, "frames": shard})
    report(progress)
    begun = time.monotonic()
    for row in _results(todo, root, out, dataset, spec, settings, workers, strict):
        failures = json.loads(row["failures"])
        if strict and failures:
            path, reason = next(iter(failures.items()))
            raise TargetsError(naming(path, reason))
        progress.done += row["done"]
        progress.failures |= failures
        progress.bytes_read += row["bytes_read"]
        progress.by_node[row["node"]] = progress.by_node.get(row["node"], 0) + row["done"]
        progress.resident_bytes = row["resident_bytes"]
        progress.peak_bytes = max(progress.peak_bytes, row["peak_bytes"])
        progress.seconds = time.monotonic() - begun
        report(progress)
    out.sweep("", "part-")
    return progress


def settings_of(out: Storage) -> dict[str, Any]:
    """What the targets in a folder were made with. Raises TargetsError where there are none."""
    if not out.exists(_SETTINGS):
        raise TargetsError(f"{out.location}: no targets here; {_SETTINGS} is missing")
    return json.loads(out.read(_SETTINGS))


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _results(
    todo: list[dict[str, Any]],
    root: Storage,
    out: Storage,
    dataset: Dataset,
    spec: TargetSpec,
    settings: dict[str, Any],
    workers: int | None,
    strict: bool,
) -> Iterator[dict[str, Any]]:
    """A row for each shard, as they are done."""

    def compute(row: dict[str, Any]) -> dict[str, Any]:
        keep_freed_memory(True)  # maps are alike: what one gives back the next one needs
        frames = row["frames"]
        own = {**settings, "names_sha256": _digest(frames)}
        with out.create(part_name(row["index"])) as sink:
            done = write_targets(frames, root.read, sink, dataset, spec, own, strict)
        return {
            "done": done.done,
            "failures": json.dumps(done.failures),
            "bytes_read": done.bytes_read,
            "node": ray.get_runtime_context().get_node_id(),
            "resident_bytes": resident_bytes(),
            "peak_bytes": peak_resident_bytes(),
        }

    if not todo:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield from (
        ray.data.from_items(todo, override_num_blocks=len(todo))
        .map(compute, compute=ray.data.TaskPoolStrategy(size=workers), num_cpus=1, max_retries=_RETRIES)
        .iter_rows()
    )


def _shards(frames: Sequence[Frame], count: int) -> list[list[Frame]]:
    """By a digest of the key: a map that is added or taken away changes one shard."""
    shards: list[list[Frame]] = [[] for _ in range(count)]
    for frame in frames:
        shards[crc32(frame.key.encode()) % count].append(frame)
    return shards


def _digest(frames: Sequence[Frame]) -> str:
    return sha256("\n".join(str(frame.labels) for frame in frames).encode()).hexdigest()[:16]


def _are_done(out: Storage, shards: list[list[Frame]]) -> list[bool]:
    """Whether each shard's file is there, of these maps, and left none out."""
    there = set(out.names())

    def is_done(index: int) -> bool:
        if part_name(index) not in there:
            return False
        with out.open(part_name(index)) as file:
            metadata = read_metadata(file)
        return not metadata["failures"] and metadata["names_sha256"] == _digest(shards[index])

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(is_done, range(len(shards))))


def _claim(out: Storage, settings: dict[str, Any], maps: int) -> int:
    """The number of shards. Writes down what `out` is for, or sees that it is for just this."""
    smallest, largest = _SHARD
    shards = max(1, -(-maps // min(largest, max(smallest, -(-maps // _SHARDS)))))
    if out.exists(_SETTINGS):
        before = json.loads(out.read(_SETTINGS))
        for name, value in settings.items():
            if before.get(name) != value:
                raise TargetsError(
                    f"{out.location}: holds targets with {name} {before.get(name)}, asked for is {value};"
                    " choose another --out"
                )
        shards = before["shards"]
    out.write(_SETTINGS, json.dumps({**settings, "shards": shards}, indent=1).encode())
    return shards
