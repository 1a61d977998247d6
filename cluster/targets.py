"""Targets for whole data sets: label maps in, Parquet out, over a Ray cluster.

The label maps are dealt out to shards by their keys, whatever the number of workers; each shard becomes one
file, `part-00000.parquet` and so on, written whole or not at all. Ray Data gives the shards to its tasks,
several to each, and runs tasks again whose worker or node died: they write the files that are not there yet,
with the same values. Started again, the job does the shards whose file is missing, left maps out, or is of
other maps.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any
from zlib import crc32

import ray
import ray.data
from ray.exceptions import RayTaskError

from fullres.cluster.memory import peak_resident_bytes, resident_bytes
from fullres.ops.allocator import keep_freed_memory
from fullres.pipeline.data.images import naming
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.layout import Frame
from fullres.pipeline.targets.compute import TargetSpec
from fullres.pipeline.targets.files import ShardReport, parameters, read_metadata, write_targets
from fullres.pipeline.targets.folder import SETTINGS, TargetsError, part_name

# Maps of a shard: enough that a file of its own does not count, few enough that a restart repeats little.
_SHARD = (32, 256)
_SHARDS = 64  # of the smallest size, then they grow
# Shards of a task at most. Ray Data leaves up to 0.1 s between two tasks of a worker, so they should take
# seconds; but what a task is given lies in its worker's memory.
_TASK = 16
# A shard whose workers died so often is the cause, not the victim.
_RETRIES = 10


class _LeftOut(Exception):
    """A file that would lack maps must not be there where the job is strict."""


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
    TargetsError, SettingsError where `out` holds targets with other parameters, OSError where it cannot be
    written.
    """
    settings = parameters(dataset, split, spec)
    progress = Progress(len(frames))
    frames, progress.failures = _with_names_for_parquet(frames)
    if strict and progress.failures:
        raise TargetsError(naming(*next(iter(progress.failures.items()))))
    shards = _shards(frames, _claim(out, settings, len(frames)), settings, _versions(root, frames))
    todo = []
    for shard, is_done in zip(shards, _are_done(out, shards), strict=True):
        if is_done:
            progress.before += len(shard.frames)
        else:
            todo.append(shard)
    report(progress)
    begun = time.monotonic()
    for row in _results(todo, root, out, dataset, spec, workers, strict):
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


def _with_names_for_parquet(frames: Sequence[Frame]) -> tuple[list[Frame], dict[str, str]]:
    """Parquet holds UTF-8 alone: the frames with such names, and the reason for each of the others."""
    fitting, failures = [], {}
    for frame in frames:
        try:
            f"{frame.key}{frame.labels}{frame.image}".encode()
            fitting.append(frame)
        except UnicodeEncodeError:
            failures[str(frame.labels)] = "its name is not UTF-8"
    return fitting, failures


@dataclass(frozen=True)
class _Shard:
    """The maps of one file."""

    name: str
    frames: list[Frame]
    parameters: dict[str, Any]
    sources: str

    def is_done(self, out: Storage) -> bool:
        """Whether its file, which is there, is whole, of these maps and parameters, and left no map out."""
        if not out.exists(self.sources_name) or out.read(self.sources_name) != self.sources.encode():
            return False
        with out.open(self.name) as file:
            try:
                return read_metadata(file) == {**self.settings, "failures": {}}
            except ValueError:
                return False

    @property
    def settings(self) -> dict[str, Any]:
        """What its file says of itself, the maps left out apart."""
        names = "\n".join(str(frame.labels) for frame in self.frames)
        return {**self.parameters, "names_sha256": sha256(names.encode()).hexdigest()[:16]}

    @property
    def sources_name(self) -> str:
        """Of the file that says from which versions of its label maps and images it was made. That is not in
        the file itself: the same maps make the same bytes."""
        return f"_{self.name}.sources"


def _results(
    todo: list[_Shard],
    root: Storage,
    out: Storage,
    dataset: Dataset,
    spec: TargetSpec,
    workers: int | None,
    strict: bool,
) -> Iterator[dict[str, Any]]:
    """A row for each shard, as they are done. Raises TargetsError where a worker cannot write."""

    def compute(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        keep_freed_memory(True)  # maps are alike: what one gives back the next one needs
        for shard in row["shards"]:
            if out.exists(shard.name) and shard.is_done(out):  # this is a second try; the first one died
                done = ShardReport(len(shard.frames), {}, 0)
            else:
                out.write(shard.sources_name, b"")  # until the new file is whole
                with suppress(_LeftOut), out.create(shard.name) as sink:
                    done = write_targets(
                        shard.frames, root.read, sink, dataset, spec, shard.settings, strict,
                        read_ahead=not root.is_local,
                    )  # fmt: skip
                    if strict and done.failures:
                        raise _LeftOut
                if not done.failures:
                    out.write(shard.sources_name, shard.sources.encode())
            yield {
                "done": done.done,
                "failures": json.dumps(done.failures),
                "bytes_read": done.bytes_read,
                "node": ray.get_runtime_context().get_node_id(),
                "resident_bytes": resident_bytes(),
                "peak_bytes": peak_resident_bytes(),
            }

    if not todo:
        return
    tasks = _tasks(todo, workers or max(1, int(ray.cluster_resources().get("CPU", 0))))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a row is handed over when it is there, not when its task ends
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, too
    try:
        yield from (
            ray.data.from_items([{"shards": task} for task in tasks], override_num_blocks=len(tasks))
            .flat_map(
                compute, compute=ray.data.TaskPoolStrategy(size=workers), num_cpus=1, max_retries=_RETRIES
            )
            .iter_rows()
        )
    except RayTaskError as error:
        if not isinstance(error.cause, OSError):
            raise
        raise TargetsError(f"{out.location}: {error.cause}") from error


def _tasks(shards: list[_Shard], workers: int) -> list[list[_Shard]]:
    """Shards by the task: each gets two thirds of a worker's share of what is left, so the first tasks are
    long and the workers end together (guided self-scheduling)."""
    tasks, begin = [], 0
    while begin < len(shards):
        end = begin + min(_TASK, -(-2 * (len(shards) - begin) // (3 * workers)))
        tasks.append(shards[begin:end])
        begin = end
    return tasks


def _versions(root: Storage, frames: Sequence[Frame]) -> dict[str, tuple[int, int]]:
    """Of the files of all frames; one that is gone meanwhile has none."""
    folders = {str(path.parent) for frame in frames for path in (frame.labels, frame.image)}
    tops = [f for f in folders if not any(str(parent) in folders for parent in PurePosixPath(f).parents)]
    return {
        name: version for folder in tops for name, version in root.versions(folder.removeprefix(".")).items()
    }


def _shards(
    frames: Sequence[Frame], count: int, settings: dict[str, Any], versions: dict[str, tuple[int, int]]
) -> list[_Shard]:
    """By a digest of the key: a map that is added, taken away or replaced changes one shard."""
    parts: list[list[Frame]] = [[] for _ in range(count)]
    for frame in frames:
        parts[crc32(frame.key.encode()) % count].append(frame)
    return [
        _Shard(part_name(index), part, settings, _digest(part, versions)) for index, part in enumerate(parts)
    ]


def _digest(frames: list[Frame], versions: dict[str, tuple[int, int]]) -> str:
    """Of the names, sizes and times of all files that targets are made from."""
    files = [str(path) for frame in frames for path in (frame.labels, frame.image)]
    return sha256("\n".join(f"{name} {versions.get(name)}" for name in files).encode()).hexdigest()[:16]


def _are_done(out: Storage, shards: list[_Shard]) -> list[bool]:
    there = set(out.names())
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda shard: shard.name in there and shard.is_done(out), shards))


def _claim(out: Storage, settings: dict[str, Any], maps: int) -> int:
    """The number of shards. Writes down what `out` is for, or sees that it is for just this."""
    smallest, largest = _SHARD
    shards = max(1, -(-maps // min(largest, max(smallest, -(-maps // _SHARDS)))))
    return out.claim(SETTINGS, settings, "targets", {"shards": shards})["shards"]
