"""Results belong to the images they were made from, whatever came between two runs."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullres.pipeline.predict.outputs import OutputsError
from fullres.pipeline.predict.sources import SOURCES, Source, Sources

NAMES = ("a", "b/a", "b/ü [x]\n", "c" * 60)


def folder(root, content=b"image"):
    images = []
    for name in NAMES:
        path = root / f"{name}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        images.append((path, path.relative_to(root).with_suffix("")))
    return images


def finish(out, sources, path, stem):
    """As `predict` does it: the result, then its line."""
    source = Source.of(path)
    result = out / f"{stem}.png"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_bytes(path.read_bytes())
    sources.add(stem, source)


@pytest.fixture
def done(tmp_path):
    """A folder of results, and its images."""
    images, out = folder(tmp_path / "images"), tmp_path / "out"
    sources = Sources(out)
    assert sources.resume(images) == images
    for image in images:
        finish(out, sources, *image)
    return out, images


def test_finished_images_are_left_alone(done):
    out, images = done
    assert Sources(out).resume(images) == []
    assert Sources(out).resume(images[1:]) == []
    assert Sources(out).resume(images) == []


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("index", range(len(NAMES)))
def test_a_replaced_image_is_labelled_again(done, index, same_size):
    out, images = done
    path, stem = images[index]
    before = path.stat()
    path.write_bytes(b"other" if same_size else b"longer than before")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + same_size))
    assert Sources(out).resume(images) == [(path, stem)]
    # killed now, and the old image put back: its line is gone
    path.write_bytes(b"image")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Sources(out).resume(images) == [(path, stem)]


def test_other_images_of_the_same_names_are_refused(done, tmp_path):
    out, _ = done
    others = folder(tmp_path / "others")
    before = (out / SOURCES).read_bytes()
    with pytest.raises(OutputsError, match=r"holds the result a of .*images/a.img, asked for is .*others/a"):
        Sources(out).resume(others)
    assert (out / SOURCES).read_bytes() == before


def test_results_of_unknown_images_are_refused(done):
    out, images = done
    (out / SOURCES).unlink()
    with pytest.raises(OutputsError, match=r"not which image .* \(sources.jsonl is missing\)"):
        Sources(out).resume(images)
    assert not (out / SOURCES).exists()


def test_a_missing_result_or_line_is_made_again(done):
    out, images = done
    (out / "a.png").unlink()
    lines = (out / SOURCES).read_bytes().splitlines(keepends=True)
    (out / SOURCES).write_bytes(b"".join(lines[:-1]))
    assert Sources(out).resume(images) == [images[0], images[-1]]


def test_a_damaged_line_is_named(done):
    out, images = done
    (out / SOURCES).write_bytes(b'{"result": "a"}\n')
    with pytest.raises(OutputsError, match=r"sources.jsonl is damaged in line 1"):
        Sources(out).resume(images)


@given(st.integers(0))
def test_the_last_line_may_be_cut(tmp_path_factory, cut):
    root = tmp_path_factory.mktemp("cut")
    images, out = folder(root / "images"), root / "out"
    sources = Sources(out)
    sources.resume(images)
    for image in images:
        finish(out, sources, *image)
    data = (out / SOURCES).read_bytes()
    last = len(data.splitlines()[-1])
    (out / SOURCES).write_bytes(data[: len(data) - 1 - cut % last])
    again = Sources(out)
    assert again.resume(images) == images[-1:]
    finish(out, again, *images[-1])
    assert Sources(out).resume(images) == []


def test_an_image_that_is_gone_is_not_done(done):
    out, images = done
    images[0][0].unlink()
    assert Sources(out).resume(images) == images[:1]


def test_what_is_pending_is_known_without_reading_or_writing(tmp_path):
    images = [(tmp_path / f"{name}.png", Path(name)) for name in "ab"]
    for path, _ in images:
        path.write_bytes(b"no image at all")
    out = tmp_path / "out"
    out.mkdir()
    sources = Sources(out)
    assert sources.pending(images) == images
    assert not list(out.iterdir())
    assert sources.resume(images) == images
    (out / "a.png").write_bytes(b"a result")
    sources.add(Path("a"), Source.of(images[0][0]))
    again = Sources(out)
    before = (out / "sources.jsonl").read_bytes()
    assert again.pending(images) == images[1:]
    assert (out / "sources.jsonl").read_bytes() == before
