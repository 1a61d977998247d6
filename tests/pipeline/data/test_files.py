"""One finder and one reader of lists for all jobs: links, doubles, odd names."""

import os

import numpy as np
import pytest

from fullres.pipeline.data.files import files_below, text_lines
from fullres.pipeline.data.images import ImageError, list_images, read_image, write_png
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.datasets import dataset
from fullres.pipeline.datasets.layout import find_frames, list_lines
from fullres.pipeline.datasets.pairs import FilesError, pair_with_labels
from fullres.pipeline.review.evaluate import evaluate, match
from fullres.pipeline.review.report import Prediction, write_report

PIXELS = np.zeros((4, 5), np.uint8)


@pytest.fixture
def linked(tmp_path):
    """a.png; b.png, a link to it; folder, a link to another with c.png; loop, a link to the top; gone.png,
    a link that leads nowhere; hidden files."""
    top = tmp_path / "top"
    write_png(top / "a.png", PIXELS)
    write_png(tmp_path / "elsewhere/c.png", PIXELS)
    write_png(top / ".hidden.png", PIXELS)
    write_png(top / ".folder/d.png", PIXELS)
    (top / "b.png").symlink_to("a.png")
    (top / "folder").symlink_to(tmp_path / "elsewhere")
    (top / "loop").symlink_to(top)
    (top / "gone.png").symlink_to("nowhere.png")
    return top


FOUND = ["a.png", "b.png", "folder/c.png", "gone.png"]


def test_links_are_files_of_their_own_name(linked):
    assert [p.relative_to(linked).as_posix() for p in files_below(linked)] == FOUND
    assert files_below(linked / "nothing") == files_below(linked / "a.png") == []
    (linked / "e.TXT").touch()
    assert [p.name for p in files_below(linked, (".txt",))] == ["e.TXT"]


def test_all_jobs_find_the_same(linked, tmp_path):
    """Images, predictions, label maps and what lies in a store."""
    by_folder = [stem.as_posix() for _, stem in list_images([linked])]
    stems = [name.removesuffix(".png") for name in FOUND]
    assert by_folder == stems
    assert Storage(str(linked)).names() == FOUND
    assert len(Storage(str(linked)).versions()) == 4
    known = dataset("scenes")
    pairs = pair_with_labels(list_images([linked]), linked, known, "image")
    assert [label.relative_to(linked).as_posix() for _, label in pairs] == FOUND
    assert len(match(linked, linked, known)) == 4
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(linked / "gone.png")
    with pytest.raises(OSError, match=r"gone\.png"):
        Storage(str(linked)).read("gone.png")


def test_a_path_given_twice_is_one_image(linked, monkeypatch):
    monkeypatch.chdir(linked)
    assert len(list_images(["a.png", "./a.png", linked / "a.png", "b.png"])) == 2


@pytest.mark.parametrize("other", ["a.tif", "a.PNG", "a.Tiff"])
def test_two_label_maps_of_one_frame_are_named(tmp_path, other):
    write_png(tmp_path / "images/a.png", PIXELS)
    write_png(tmp_path / "labels/a.png", PIXELS)
    (tmp_path / "labels" / other).write_bytes((tmp_path / "labels/a.png").read_bytes())
    images = list_images([tmp_path / "images"])
    with pytest.raises(FilesError, match="two label maps for one frame") as caught:
        pair_with_labels(images, tmp_path / "labels", dataset("scenes"), "image")
    assert sorted(os.path.basename(path) for path in caught.value.problems) == sorted(["a.png", other])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le marked", "utf-16-be marked"])
def test_lists_of_any_text_encoding(encoding):
    text = "stra\u00dfe/1\n\u8857/2\r\nlast"
    plain = encoding.removesuffix(" marked")
    mark = "\ufeff" if plain != encoding else ""
    data = (mark + text).encode(plain)
    assert text_lines(data) == list_lines("val.txt", data) == ["stra\u00dfe/1", "\u8857/2", "last"]


def test_a_list_that_is_no_text_is_named():
    with pytest.raises(FilesError, match=r"val\.txt: neither UTF-8 nor UTF-16"):
        list_lines("val.txt", b"stra\xdfe\n")


ODD = [
    b"caf\xe9",
    b"new\nline",
    b"[red]b",
    b"a.b.c",
    "\u8857".encode(),
    b" space ",
    b"1",
    b"11",
    b"100%",
    b"-x",
    b"qu'o\"te",
]


@pytest.fixture
def odd(tmp_path):
    """A data set with names that one does not think of."""
    for name in map(os.fsdecode, ODD):
        write_png(tmp_path / f"images/{name}.png", np.zeros((4, 5, 3), np.uint8))
        write_png(tmp_path / f"labels/{name}.png", PIXELS)
    return tmp_path


def test_odd_names_are_found_in_every_way(odd):
    known = dataset("scenes")
    frames = find_frames(known, odd, "all")
    pairs = pair_with_labels(list_images([odd / "images"]), odd / "labels", known, "image")
    assert len(pairs) == len(ODD)
    assert sorted(frame.key for frame in frames.frames) == sorted(map(os.fsdecode, ODD))
    assert not frames.problems
    assert evaluate(odd / "labels", odd / "labels", known).images == len(ODD)


def test_a_page_of_odd_names(odd, tmp_path):
    run = Prediction("A", odd / "labels")
    write_report(odd / "images", odd / "labels", dataset("scenes"), [run], tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    assert "[red]b" in page
    assert "caf%E9" in page
