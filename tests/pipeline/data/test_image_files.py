"""Writing files and listing folders; `test_images.py` has the reading."""

import os
from pathlib import Path

import numpy as np
import pytest

from fullres.pipeline.data.files import atomic, write_bytes_atomically
from fullres.pipeline.data.images import ImageError, list_images, read_image, read_labels, write_png


@pytest.mark.parametrize("shape", [(1, 1), (33, 57), (33, 57, 3)])
def test_write_png(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "new folder/x.png", image)
    np.testing.assert_array_equal(
        (read_labels if len(shape) == 2 else read_image)(tmp_path / "new folder/x.png"), image
    )
    assert os.listdir(tmp_path / "new folder") == ["x.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.npy"
    path.write_text("old")

    def fail():
        with atomic(path) as temporary:
            assert (temporary.parent, temporary.suffix, temporary.name[0]) == (tmp_path, ".npy", ".")
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.npy"]


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / f"{'x' * 251}.png"
    write_png(path, np.zeros((2, 3), np.uint8))
    assert read_labels(path).shape == (2, 3)


def test_write_bytes_atomically_replaces(tmp_path):
    for data in (b"old", b"new"):
        write_bytes_atomically(tmp_path / "x.json", data)
    assert (tmp_path / "x.json").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.json"]


class TestListImages:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        for name in (
            "d/b.PNG",
            "d/a/2.jpg",
            "d/a/1.tif",
            "d/a/.hidden.png",
            "d/notes.txt",
            "e[1]/x.webp",
            "y.0.bmp",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            (["d"], {"d/a/1.tif": "a/1", "d/a/2.jpg": "a/2", "d/b.PNG": "b"}),
            (["d/a/2.jpg", "y.0.bmp"], {"d/a/2.jpg": "2", "y.0.bmp": "y.0"}),
            (["d/*"], {"d/b.PNG": "b"}),
            (["d/**/*.???"], {"d/a/1.tif": "a/1", "d/a/2.jpg": "a/2", "d/b.PNG": "b"}),
            (["*/a/*"], {"d/a/1.tif": "d/a/1", "d/a/2.jpg": "d/a/2"}),
            (["e[1]"], {"e[1]/x.webp": "x"}),
            ([Path("d/b.PNG"), "d", "./d/a"], {"d/b.PNG": "b", "d/a/1.tif": "a/1", "d/a/2.jpg": "a/2"}),
        ],
    )
    def test_found(self, inputs, expected):
        found = [(path.as_posix(), stem.as_posix()) for path, stem in list_images(inputs)]
        assert found == list(expected.items())

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("nowhere", "nowhere: no such file or folder"),
            ("d/*.txt", "d/*.txt: no image matches; images end in .png .jpg .jpeg .tif .tiff .bmp .webp"),
            ("empty", "empty: no image in this folder; images end in"),
        ],
    )
    def test_nothing_found(self, tmp_path, given, message):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ImageError) as caught:
            list_images(["d", given])
        assert str(caught.value).startswith(message)

    def test_two_files_of_one_output_name(self, tmp_path):
        (tmp_path / "d/a/1.png").touch()
        with pytest.raises(ImageError, match=r"^d/a/1\.png and d/a/1\.tif have the same output name a/1$"):
            list_images(["d"])
