import io
import json
import struct

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from fullres.ops.sampling_solve import uniform_tensor
from fullres.pipeline.data.images import write_png
from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.datasets.layout import Frame
from fullres.pipeline.targets import files
from fullres.pipeline.targets.compute import TargetSpec, targets_of
from fullres.pipeline.targets.files import parameters, read_metadata, schema, write_targets

KNOWN = folder(4)
EVERYTHING = TargetSpec((3, 5), 0.5, cpp=(2, 8), boundary=True, distance=True)

label_maps = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.sampled_from([0, 1, 2, 3, 255])
)


@settings(max_examples=60, deadline=None)
@given(label_maps)
def test_columns_have_the_types_of_the_schema(labels):
    targets = targets_of(labels, KNOWN, EVERYTHING)
    assert list(targets) == ["phi", "boundary", "distance", "cpp_2", "cpp_8"]
    assert targets["phi"].shape == (3, 5, 2)
    assert targets["phi"].dtype == np.float32
    height, width = labels.shape
    for scale in (2, 8):
        cells = targets[f"cpp_{scale}"]
        assert cells.shape == (5, -(-height // scale), -(-width // scale))
        np.testing.assert_allclose(cells.sum(0), 1, atol=1e-6)
    boundary, distance = targets["boundary"], targets["distance"]
    assert boundary.shape == distance.shape == labels.shape
    if boundary.any():
        np.testing.assert_allclose(distance, ndimage.distance_transform_edt(boundary == 0), rtol=1e-6)
    else:
        assert np.isinf(distance).all()
        np.testing.assert_allclose(targets["phi"], uniform_tensor(3, 5), atol=1e-7)


def test_target_classes_are_those_of_the_name():
    labels = np.zeros((9, 9), np.uint8)
    labels[2, 3], labels[6, 6] = 1, 2
    one = TargetSpec((3, 3), 1, ("class 1",), boundary=True)
    assert np.argwhere(targets_of(labels, KNOWN, one)["boundary"]).tolist() == [[2, 3]]


def frames_in(root, maps):
    frames = []
    for index, labels in enumerate(maps):
        write_png(root / f"labels/{index}.png", labels)
        write_png(root / f"images/{index}.png", np.zeros((*labels.shape, 3), np.uint8))
        frames.append(Frame(root / f"images/{index}.png", root / f"labels/{index}.png", str(index)))
    return frames


def read(path, first):
    with open(path, "rb") as file:
        return file.read(first)


@pytest.mark.parametrize("row_group", [1, 32 << 20])
def test_a_file_holds_a_row_for_each_map(tmp_path, monkeypatch, row_group):
    monkeypatch.setattr(files, "_ROW_GROUP", row_group)
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 4, (h, w), np.uint8) for h, w in ((5, 7), (1, 1), (40, 33), (2, 90))]
    sink = io.BytesIO()
    told = parameters(KNOWN, "all", EVERYTHING)
    report = write_targets(frames_in(tmp_path, maps), read, sink, KNOWN, EVERYTHING, told)
    assert (report.done, report.failures) == (4, {})
    table = pq.read_table(io.BytesIO(sink.getvalue()))
    assert table.schema.equals(schema(EVERYTHING))
    assert pq.ParquetFile(io.BytesIO(sink.getvalue())).num_row_groups == (4 if row_group == 1 else 1)
    phi = table["phi"].combine_chunks().to_numpy_ndarray()
    for i, labels in enumerate(maps):
        targets, row = targets_of(labels, KNOWN, EVERYTHING), table.slice(i, 1).to_pylist()[0]
        assert (row["key"], row["height"], row["width"]) == (str(i), *labels.shape)
        np.testing.assert_array_equal(phi[i], targets.pop("phi"))
        for name, value in targets.items():
            np.testing.assert_array_equal(np.reshape(row[name]["data"], row[name]["shape"]), value)


def test_metadata_say_how_the_targets_were_made(tmp_path):
    sink = io.BytesIO()
    told = parameters(KNOWN, "all", EVERYTHING)
    frames = frames_in(tmp_path, [np.full((4, 4), 9, np.uint8), np.zeros((4, 4), np.uint8)])
    write_targets(frames, read, sink, KNOWN, EVERYTHING, told)
    metadata = read_metadata(io.BytesIO(sink.getvalue()))
    assert "label ids [9] don't belong" in metadata.pop("failures")[str(frames[0].labels)]
    assert metadata == json.loads(json.dumps(told))
    assert metadata["grid"] == [3, 5]
    assert metadata["smoothness"] == 0.5
    assert metadata["schema_version"] == 1


def test_nothing_usable_is_an_empty_file(tmp_path):
    sink = io.BytesIO()
    frame = Frame(tmp_path / "images/0.png", tmp_path / "labels/0.png", "0")
    report = write_targets([frame], read, sink, KNOWN, EVERYTHING, parameters(KNOWN, "all", EVERYTHING))
    assert report.done == 0
    assert list(report.failures) == [str(frame.labels)]
    assert pq.read_table(io.BytesIO(sink.getvalue())).num_rows == 0


@pytest.mark.parametrize("thumbnail", [0, 50_000])
def test_sizes_are_compared_after_orientation(tmp_path, thumbnail):
    """Also where the image's header is long."""
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 274, 3, 1, 6, 0, 0) + bytes(thumbnail)
    segment = struct.pack(">HH", 0xFFE1, 2 + 6 + len(exif)) + b"Exif\0\0" + exif
    jpeg = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    frames = frames_in(tmp_path, [np.zeros((30, 20), np.uint8), np.zeros((20, 30), np.uint8)])
    for frame in frames:
        frame.image.write_bytes(jpeg[:2] + segment + jpeg[2:])
    report = write_targets(frames, read, io.BytesIO(), KNOWN, EVERYTHING, {})
    assert report.done == 1
    (reason,) = report.failures.values()
    assert reason == f"{frames[1].labels}: 30x20 pixels, but its image {frames[1].image} has 20x30"


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
def test_sizes_are_compared_in_formats_without_a_common_header(tmp_path, suffix):
    frames = frames_in(tmp_path, [np.zeros((30, 20), np.uint8), np.zeros((20, 30), np.uint8)])
    for frame in frames:
        frame.image.write_bytes(cv2.imencode(suffix, np.zeros((30, 20, 3), np.uint8))[1].tobytes())
    report = write_targets(frames, read, io.BytesIO(), KNOWN, EVERYTHING, {})
    assert report.done == 1
    assert "30x20 pixels, but its image" in report.failures[str(frames[1].labels)]


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"no picture\n" * 200, "not an image")])
def test_images_that_are_none_are_named(tmp_path, data, reason):
    frames = frames_in(tmp_path, [np.zeros((4, 4), np.uint8)] * 2)
    frames[1].image.write_bytes(data)
    report = write_targets(frames, read, io.BytesIO(), KNOWN, EVERYTHING, {})
    assert (report.done, report.failures) == (1, {str(frames[1].labels): f"{frames[1].image}: {reason}"})


def test_strict_stops_at_the_first(tmp_path):
    frames = frames_in(tmp_path, [np.full((4, 4), value, np.uint8) for value in (1, 7, 8, 1)])
    report = write_targets(frames, read, io.BytesIO(), KNOWN, EVERYTHING, {}, strict=True)
    assert (report.done, len(report.failures)) == (1, 1)


@pytest.mark.parametrize("data", [b"", b"PAR1" * 10, b"PAR1" + bytes(100) + b"\x40\0\0\0PAR1"])
def test_other_files_are_no_targets(data):
    with pytest.raises(ValueError, match="not a file of fullres targets"):
        read_metadata(io.BytesIO(data))
