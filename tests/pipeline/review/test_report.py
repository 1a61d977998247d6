import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from fullres.ops.sampling_solve import uniform_tensor
from fullres.pipeline.data.images import read_image, write_png
from fullres.pipeline.datasets import dataset
from fullres.pipeline.datasets.pairs import FilesError
from fullres.pipeline.predict.adaptive import FromPoints
from fullres.pipeline.predict.outputs import write_points
from fullres.pipeline.review.evaluate import evaluate
from fullres.pipeline.review.report import CROP, Prediction, busiest_crop, compared_errors, write_report

SCENES = dataset("scenes")
POLE, ROAD = 5, 0


@pytest.fixture
def folders(tmp_path):
    """Two frames, one of them in a subfolder with a blank in its name, and two predictions."""
    rng = np.random.default_rng(0)
    for name in ("a", "a street/b"):
        labels = np.full((300, 1100), ROAD, np.uint8)
        labels[:100], labels[50:250, 700:704] = 10, POLE
        write_png(tmp_path / f"images/{name}.png", rng.integers(256, size=(300, 1100, 3), dtype=np.uint8))
        write_png(tmp_path / f"labels/{name}.png", labels)
        write_png(tmp_path / f"good/{name}.png", labels)
        write_png(tmp_path / f"bad/{name}.png", np.where(labels == POLE, np.uint8(ROAD), labels))
    summary = {
        "settings": {"model": "smp18", "precision": "bf16"},
        "images": {"done": 2},
        "parameters": 704547,
        "wall_seconds": 3.21,
        "workers": [{"device": "CPU", "busy_share": 0.9}, {"device": "CPU", "busy_share": 1.0}],
    }
    (tmp_path / "good/summary.json").write_text(json.dumps(summary))
    return tmp_path


def write(folders, **named):
    predictions = [Prediction(name, folders / folder) for name, folder in named.items()]
    return write_report(folders / "images", folders / "labels", SCENES, predictions, folders / "out")


def test_page_leads_to_its_pictures_and_nowhere_else(folders):
    write(folders, FCN="bad", SMP="good")
    page = (folders / "out/index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(links) == 2 * 5 * 4  # image, truth, two predictions, errors of the second beside the first's
    for link in links:
        assert (folders / "out" / unquote(link)).is_file(), link
    assert "http" not in page
    assert {p.name for p in (folders / "out").iterdir()} == {"index.html", "pictures"}


def test_errors_beside_the_first_prediction():
    truth = np.array([[0, 0, 0, 0, 255]], np.uint8)
    before = np.array([[0, 1, 0, 1, 1]], np.uint8)
    labels = np.array([[0, 0, 2, 2, 2]], np.uint8)
    white, green, red, grey = (255, 255, 255), (26, 152, 80), (215, 48, 39), (150, 150, 150)
    assert compared_errors(labels, before, truth, 255).tolist() == [
        [*map(list, (white, green, red, grey, white))]
    ]


def test_a_run_from_few_pixels_shows_where_they_were(folders):
    """With `--save points`: the grid, what was sampled, the classes there; and how many, at which cost."""
    rng = np.random.default_rng(1)
    image = rng.integers(256, size=(300, 1100, 3), dtype=np.uint8)
    found = FromPoints(np.zeros((300, 1100), np.uint8), uniform_tensor(20, 40), np.zeros((20, 40), np.uint16))
    for name in ("a", "a street/b"):
        write_points(folders / "bad", Path(name), image, found, SCENES.palette)
    summary = {
        "settings": {"sampling": {"size": [20, 40], "downsampler": "0123"}},
        "images": {"done": 2},
        "tera_operations": 0.0064,
    }
    (folders / "bad/summary.json").write_text(json.dumps(summary))
    write(folders, full="good", few="bad")
    page = (folders / "out/index.html").read_text()
    assert re.findall(r"<td>(40x20, adaptive|3\.20)</td>", page) == ["40x20, adaptive", "3.20"]
    for said in ("where it was sampled", "what was sampled", "classes at the points"):
        assert page.count(said) == 2
    assert read_image(folders / "out/pictures/a/sampled2.png").shape == (20, 40, 3)
    assert np.array_equal(read_image(folders / "out/pictures/a/grid2.png")[0, 0], (255, 40, 40))
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert all((folders / "out" / unquote(link)).is_file() for link in links)


def test_scores_are_those_of_evaluate_with_the_best_in_bold(folders):
    evaluations = write(folders, FCN="bad", SMP="good")
    assert evaluations[0].mean_iou == evaluate(folders / "bad", folders / "labels", SCENES).mean_iou
    assert evaluations[1].mean_iou == 1
    page = (folders / "out/index.html").read_text()
    pole = next(row for row in re.findall(r"<tr.*?</tr>", page, re.S) if "</span>pole" in row)
    assert 'class="small-thin"' in pole
    assert re.findall(r"<td.*?>([\d.–]+)", pole) == ["0.0", "100.0"]
    assert '<td class="best">100.0 <small class="up">+100.0</small></td>' in pole
    bus = next(row for row in re.findall(r"<tr.*?</tr>", page, re.S) if "</span>bus" in row)
    assert re.findall(r"<td.*?>([\d.–]+)", bus) == ["–", "–"]


def test_says_what_was_run_where_a_summary_does(folders):
    write(folders, FCN="bad", SMP="good")
    page = (folders / "out/index.html").read_text()
    for value in ("704,547", "3.2", "2 (CPU)", "95%"):
        assert f"<td>–</td><td>{value}</td>" in page


def test_pictures(folders):
    write(folders, SMP="good")
    pictures = folders / "out/pictures/a street/b"
    assert read_image(pictures / "truth.png").shape == (300, 1100, 3)
    assert read_image(pictures / "truth_small.png").shape == (262, 960, 3)
    crop = read_image(pictures / "truth_crop.png")
    assert crop.shape == (*CROP, 3)
    assert (crop == SCENES.palette[POLE]).all(-1).sum() == 4 * CROP[0]
    image = read_image(folders / "images/a street/b.png")
    np.testing.assert_array_equal(read_image(pictures / "image.png"), image)


def test_names_are_escaped(folders):
    write(folders, **{"<i>": "good"})
    assert "<i>" not in (folders / "out/index.html").read_text()
    assert "&lt;i&gt;" in (folders / "out/index.html").read_text()


def test_missing_prediction_or_image_writes_no_page(folders):
    (folders / "bad/a.png").unlink()
    with pytest.raises(FilesError, match=r"a\.png: no prediction"):
        write(folders, FCN="bad")
    (folders / "images/a.png").unlink()
    with pytest.raises(FilesError, match=r"a\.png: no image"):
        write(folders, SMP="good")
    assert not (folders / "out/index.html").exists()


def test_the_crop_prefers_thin_things_to_large_ones_and_stays_inside():
    labels = np.zeros((400, 800), np.uint8)
    labels[100:300, 50:250] = 11  # a near person: an outline of 800 pixels or so
    for x in range(500, 700, 10):
        labels[150:250, x : x + 3] = POLE
    top, left = busiest_crop(labels, (POLE, 11), (100, 200))
    assert (top, left) == (150, pytest.approx(500, abs=10))
    assert busiest_crop(np.full((30, 40), POLE, np.uint8), (POLE,), (100, 200)) == (0, 0)
    assert busiest_crop(np.zeros((300, 400), np.uint8), (POLE,), (100, 200)) == (0, 0)
