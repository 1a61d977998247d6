import numpy as np
import pytest

from fullres.pipeline.data.images import write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.datasets.check import check_frames
from fullres.pipeline.datasets.layout import find_frames

CAMVID = dataset("camvid")


@pytest.fixture
def root(tmp_path):
    """Three frames of one split, all right."""
    for name, labels in (("1", [[0, 0, 2], [3, 11, 3]]), ("2", [[0, 0, 0], [0, 0, 0]]), ("3", [[11] * 4])):
        labels = np.uint8(labels)
        write_png(tmp_path / f"val/{name}.png", np.zeros((*labels.shape, 3), np.uint8))
        write_png(tmp_path / f"valannot/{name}.png", labels)
    return tmp_path


def check(root):
    calls = []
    result = check_frames(CAMVID, find_frames(CAMVID, root, "val"), lambda: calls.append(1))
    assert len(calls) == result.frames
    return result


def test_counts_frames_sizes_and_pixels(root):
    result = check(root)
    assert not result.problems
    assert result.frames == 3
    assert result.sizes == {(2, 3): 2, (1, 4): 1}
    assert result.pixels.tolist() == [8, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert result.ignored == 5
    np.testing.assert_allclose(result.shares[[0, 2, 3]], [8 / 11, 1 / 11, 2 / 11])
    assert result.ignored_share == 5 / 16


def test_problems_of_each_kind_are_named(root):
    label = root / "valannot/1.png"
    label.write_bytes(label.read_bytes()[:-20])
    (root / "val/2.png").write_bytes(b"")
    write_png(root / "valannot/3.png", np.uint8([[11, 12, 40]]))
    write_png(root / "val/4.png", np.zeros((2, 2, 3), np.uint8))
    write_png(root / "valannot/4.png", np.uint8([[1, 1, 1]]))
    write_png(root / "val/5.png", np.zeros((2, 2, 3), np.uint8))
    write_png(root / "valannot/6.png", np.uint8([[1]]))
    (root / "val/7.png").symlink_to(root / "gone.png")
    (root / "valannot/7.png").symlink_to(root / "gone.png")
    result = check(root)
    assert [problem.removeprefix(f"{root}/") for problem in result.problems] == [
        "val/5.png: no label map",
        "valannot/6.png: no image",
        f"valannot/1.png: PNG file of {label.stat().st_size} bytes is cut short or damaged",
        "val/2.png: empty file",
        "valannot/3.png: label ids [12, 40] don't belong to camvid (0..11)",
        f"valannot/4.png: size 3x1 but 2x2 in {root}/val/4.png",
        "val/7.png: no such file or directory",
        "valannot/7.png: No such file or directory",
    ]
    assert result.frames == 5
    # What could be read counts: frame 2's labels, frame 4's.
    assert result.pixels[:2].tolist() == [6, 3]


def test_nothing_but_ignored_pixels(root):
    for name in ("1", "2", "3"):
        write_png(root / f"val/{name}.png", np.zeros((1, 4, 3), np.uint8))
        write_png(root / f"valannot/{name}.png", np.uint8([[11] * 4]))
    result = check(root)
    assert not result.shares.any()
    assert result.ignored_share == 1
