"""Targets over a Ray cluster of two nodes: what comes out is what one process computes, whatever happens."""

import json
import logging
import os
import random
import re
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray

from fullres.cluster import targets as cluster_targets
from fullres.pipeline.data.images import write_png
from fullres.pipeline.data.storage import SettingsError, Storage
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.datasets.layout import find_stored_frames
from fullres.pipeline.targets.compute import TargetSpec, targets_of
from fullres.pipeline.targets.folder import TargetsError, settings_of
from tests.clusters import cluster_of, node_of
from tests.pipeline.data.object_stores import BUCKETS, CREDENTIALS

MIB = 1 << 20
KNOWN = folder(6)
SPEC = TargetSpec(grid=(4, 6), smoothness=0.3, cpp=(4, 16), boundary=True, distance=True)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_targets, "_SHARD", (4, 256))  # 24 files, the first tasks of several
        for name, value in CREDENTIALS.items():  # workers have the environment of their node
            patch.setenv(name, value)
        cluster = cluster_of(1, 128)
        cluster.add_node(**node_of(1, 128))
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def labels_of(index):
    """A label map of coarse areas; every third is of another size, number 7 has no boundary."""
    rng = np.random.default_rng(index)
    size = (301, 407) if index % 3 else (200, 333)
    areas = rng.integers(0, 6, (5, 7), np.uint8)
    labels = cv2.resize(areas, size[::-1], interpolation=cv2.INTER_NEAREST)
    labels[rng.random(size) < 0.001] = 255
    return np.full(size, 3, np.uint8) if index == 7 else labels


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for index in range(96):
        labels = labels_of(index)
        write_png(root / f"labels/{index % 4}/{index:03}.png", labels)
        write_png(root / f"images/{index % 4}/{index:03}.png", np.repeat(labels[..., None], 3, 2))
    return root


def run(root, out, spec=SPEC, **more):
    source = Storage(str(root))
    found = find_stored_frames(source, KNOWN, "all")
    return cluster_targets.run(found.frames, source, Storage(str(out)), KNOWN, "all", spec, None, **more)


@pytest.fixture(scope="module")
def undisturbed(cluster, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return out, run(root, out)


def parts(out):
    return {path.name: path.read_bytes() for path in sorted(Path(out).glob("*.parquet"))}


def failures_in(out):
    """By file, the maps left out."""
    metadata = {path.name: pq.read_metadata(path).metadata for path in Path(out).glob("*.parquet")}
    return {name: json.loads(of_file[b"fullres"])["failures"] for name, of_file in metadata.items()}


def rows_of(out, files=None):
    return pyarrow.dataset.dataset(str(out), filesystem=files).to_table().to_pylist()


def test_every_map_once_with_what_one_process_computes(undisturbed):
    out, progress = undisturbed
    assert (progress.maps, progress.done, progress.before, progress.failures) == (96, 96, 0, {})
    rows = {row["key"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == 96
    for index in range(96):
        labels, row = labels_of(index), rows[f"{index % 4}/{index:03}"]
        assert (row["height"], row["width"]) == labels.shape
        for name, value in targets_of(labels, KNOWN, SPEC).items():
            stored = row[name] if name == "phi" else row[name]["data"]
            assert name == "phi" or tuple(row[name]["shape"]) == value.shape
            np.testing.assert_array_equal(np.array(stored, value.dtype), value.ravel(), err_msg=name)


def test_both_nodes_work(undisturbed):
    assert len(undisturbed[1].by_node) == 2
    assert min(undisturbed[1].by_node.values()) >= 10


def test_nothing_is_done_twice(undisturbed, root):
    out, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    again = run(root, out)
    assert (again.before, again.done) == (96, 0)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


def test_what_is_missing_is_done(undisturbed, root, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "out")
    (tmp_path / "out/part-00002.parquet").unlink()
    again = run(root, tmp_path / "out")
    assert again.before + again.done == 96
    assert 0 < again.done < 20
    assert parts(tmp_path / "out") == parts(undisturbed[0])


def test_what_is_damaged_is_done_again(undisturbed, root, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "out")
    whole = parts(undisturbed[0])
    spoilt = {name: data for name, data in whole.items() if len(data) > 2000}  # some are of no map
    first, second, third, *_ = spoilt
    (tmp_path / "out" / first).write_bytes(b"")
    (tmp_path / "out" / second).write_bytes(spoilt[second][:-100])
    (tmp_path / "out" / third).write_bytes(spoilt[third][:-500] + bytes(492) + spoilt[third][-8:])
    again = run(root, tmp_path / "out")
    assert 0 < again.done < 24
    assert parts(tmp_path / "out") == whole


def test_what_was_replaced_is_done_again(undisturbed, root, tmp_path):
    """A label map or an image, of the same size too. The old one put back makes the old bytes."""
    replaced, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(root, replaced)
    assert run(replaced, out).done == 96
    assert parts(out) == parts(undisturbed[0])
    label = replaced / "labels/1/005.png"
    before = label.read_bytes()
    write_png(label, np.roll(labels_of(5), 40, 1))
    again = run(replaced, out)
    assert 0 < again.done < 20
    assert parts(out) != parts(undisturbed[0])
    label.write_bytes(before)
    (replaced / "images/2/002.png").touch()
    again = run(replaced, out)
    assert 0 < again.done < 20
    assert parts(out) == parts(undisturbed[0])


def test_parameters_are_of_each_file(undisturbed, root, tmp_path):
    """Also where somebody took away what they are for the folder."""
    shutil.copytree(undisturbed[0], tmp_path / "out")
    (tmp_path / "out/_targets.json").unlink()
    assert run(root, tmp_path / "out", TargetSpec((2, 2))).done == 96


@pytest.mark.parametrize("text", ["", '{"grid": [4, '])
def test_damaged_settings_are_one_line(root, tmp_path, text):
    (tmp_path / "_targets.json").write_text(text)
    damaged = rf"{tmp_path}/_targets.json is damaged .* remove it"
    with pytest.raises(SettingsError, match=damaged):
        run(root, tmp_path)
    with pytest.raises(SettingsError, match="damaged"):
        settings_of(Storage(str(tmp_path)))


def test_what_workers_cannot_write_is_one_line(cluster, root, tmp_path, capfd):
    (tmp_path / "part-00001.parquet").mkdir()
    with pytest.raises(TargetsError, match=rf"^{tmp_path}: .*part-00001.parquet") as caught:
        run(root, tmp_path)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_relative_folder_is_the_drivers(cluster, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").symlink_to(root)
    assert run("root", "out", TargetSpec((2, 2))).failures == {}
    assert len(rows_of(tmp_path / "out")) == 96


def workers_at_work():
    """Process ids of the Ray workers that run a task of the job, of this process's cluster alone."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::FlatMap"):
                found.append(process.pid)
    return found


def test_killed_workers_change_nothing(undisturbed, root, tmp_path):
    stop, killed, moments = threading.Event(), [], random.Random(0)
    there = {}  # files that were there at a death, and their modification times

    def kill():
        while not stop.wait(moments.uniform(0.1, 0.4)) and len(killed) < 4:
            for pid in workers_at_work()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                for path in tmp_path.glob("part-*"):
                    there.setdefault(path, path.stat().st_mtime_ns)

    killer = threading.Thread(target=kill)
    killer.start()
    progress = run(root, tmp_path)
    stop.set()
    killer.join()
    assert killed
    assert (progress.done, progress.failures) == (96, {})
    assert parts(tmp_path) == parts(undisturbed[0])
    assert there == {path: path.stat().st_mtime_ns for path in there}  # what was done is not done again
    assert not list(tmp_path.glob(".part*"))


@pytest.mark.slow
def test_a_killed_node_changes_nothing(cluster, undisturbed, root, tmp_path):
    node = cluster.add_node(**node_of(1, 128))

    def kill(progress):
        if progress.done and node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)

    progress = run(root, tmp_path, report=kill)
    assert node not in cluster.worker_nodes
    assert (progress.done, progress.failures) == (96, {})
    assert parts(tmp_path) == parts(undisturbed[0])


@pytest.fixture
def spoiled(root, tmp_path):
    """The same data set with a fault of each kind."""
    spoiled = tmp_path / "root"
    shutil.copytree(root, spoiled)
    (spoiled / "labels/0/000.png").write_bytes((root / "labels/0/000.png").read_bytes()[:200])
    (spoiled / "labels/1/001.png").write_bytes(b"")
    write_png(spoiled / "labels/2/002.png", np.full((301, 407), 6, np.uint8))
    write_png(spoiled / "labels/3/003.png", np.zeros((10, 20), np.uint8))
    (spoiled / "images/0/004.png").unlink()
    for kind in ("images", "labels"):  # a name that is not UTF-8
        name = os.fsdecode(b"caf\xe9.png")
        shutil.copy(spoiled / kind / "3/007.png", spoiled / kind / "3" / name)
    return spoiled


def test_bad_files_are_left_out_and_named(undisturbed, root, spoiled, tmp_path):
    out = tmp_path / "out"
    progress = run(spoiled, out)
    assert (progress.maps, progress.done) == (96, 91)
    reasons = {
        "labels/0/000.png": "cut short or damaged",
        "labels/1/001.png": "empty file",
        "labels/2/002.png": r"label ids \[6\] don't belong to folder",
        "labels/3/caf\udce9.png": "its name is not UTF-8",
        "labels/3/003.png": "20x10 pixels, but its image images/3/003.png has 333x200",
    }
    assert progress.failures.keys() == reasons.keys()
    for path, reason in reasons.items():
        assert re.search(reason, progress.failures[path]), progress.failures[path]
    assert find_stored_frames(Storage(str(spoiled)), KNOWN, "all").problems == ["labels/0/004.png: no image"]
    assert len(rows_of(out)) == 91
    before = parts(out)
    for place in (out, tmp_path / "strict"):
        with pytest.raises(TargetsError, match="labels/"):
            run(spoiled, place, strict=True)
    wanting = {name for name, failed in failures_in(out).items() if failed}
    assert len(wanting) >= 3
    assert parts(out) == before
    assert not wanting & parts(tmp_path / "strict").keys()
    # mended, it is as if nothing had been wrong
    shutil.rmtree(spoiled)
    shutil.copytree(root, spoiled)
    again = run(spoiled, out)
    assert again.done > 0
    assert again.failures == {}
    assert parts(out) == parts(undisturbed[0])


def test_other_parameters_are_refused(undisturbed, root):
    with pytest.raises(SettingsError, match=r"other settings \(smoothness: 0.3 there, 1.0 now"):
        run(root, undisturbed[0], TargetSpec((4, 6), 1.0, cpp=(4, 16), boundary=True, distance=True))


def test_a_target_that_cannot_be_written_ends_before_work(cluster, root, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run(root, tmp_path / "file/out")


@pytest.mark.parametrize("store", ["s3", pytest.param("gs", marks=pytest.mark.slow)])
def test_object_stores_hold_input_and_output(cluster, undisturbed, root, store):
    with BUCKETS[store]() as uri:
        source, out = Storage(uri.format("data")), Storage(uri.format("targets"))
        for path in sorted(root.rglob("*.png")):
            source.write(path.relative_to(root).as_posix(), path.read_bytes())
        found = find_stored_frames(source, KNOWN, "all")
        progress = cluster_targets.run(found.frames, source, out, KNOWN, "all", SPEC, None)
        assert (progress.done, progress.failures) == (96, {})
        names = [name for name in out.names() if name.endswith(".parquet")]
        assert {name: out.read(name) for name in names} == parts(undisturbed[0])
        table = pyarrow.dataset.dataset(out.path, filesystem=out.files).to_table()
        assert isinstance(table.schema.field("phi").type, pa.FixedShapeTensorType)
        assert cluster_targets.run(found.frames, source, out, KNOWN, "all", SPEC, None).before == 96
