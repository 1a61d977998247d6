"""`fullres explain` from images in files to pictures in files."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import read_image, write_png
from fullres.pipeline.data.pictures import heat
from fullres.pipeline.datasets import dataset
from fullres.pipeline.review.explain import Explainer
from tests.networks import narrow
from tests.scenes import render_scene

torch.set_num_threads(1)

CAMVID = dataset("camvid")


def network():
    """Labels everything as a pedestrian or a pole, whatever it sees."""
    made = narrow("pspnet50", classes=11)
    with torch.no_grad():
        made.cls[-1].bias[[CAMVID.classes.index(name) for name in ("pedestrian", "pole")]] += 100
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pspnet.safetensors"
    save_weights(network(), path, WeightsInfo("pspnet50", 1 / 16, 11, "camvid"))
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for i, size in enumerate([(64, 96), (97, 61)]):
        write_png(folder / f"street/{i}.png", render_scene(i, *size)[0])
    return folder


def explain(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def written(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def test_a_picture_for_each_image_and_class(tmp_path, scenes, weights):
    asked = ("--model", "pspnet50", "--weights", weights, "--classes", "pole, pedestrian", "--out", tmp_path)
    result = explain(scenes, *asked)
    assert result.exit_code == 0, result.output
    names = [f"street/{i}_{name}.png" for i in (0, 1) for name in ("pedestrian", "pole")]
    assert written(tmp_path) == names
    explainer = Explainer(network(), "backbone.layer4")
    ids = [CAMVID.classes.index(c) for c in ("pedestrian", "pole")]
    for i in (0, 1):
        image = read_image(scenes / f"street/{i}.png")
        for name, evidence in zip(("pedestrian", "pole"), explainer.explain(image, ids), strict=True):
            shown = read_image(tmp_path / f"street/{i}_{name}.png")
            np.testing.assert_array_equal(shown, heat(image, evidence.map))
    assert "2 of 2 images, 2 classes, layer backbone.layer4" in result.stdout


def test_another_layer_gives_another_picture(tmp_path, scenes, weights):
    asked = ("--model", "pspnet50", "--weights", weights, "--classes", "pole,pedestrian")
    for layer in ("backbone.layer4", "backbone.layer2"):
        result = explain(scenes, *asked, "--layer", layer, "--out", tmp_path / layer)
        assert f"layer {layer};" in result.stdout
    last, before = ([(tmp_path / layer / name).read_bytes() for name in written(tmp_path / layer)]
                    for layer in ("backbone.layer4", "backbone.layer2"))  # fmt: skip
    assert last != before


def test_images_that_cannot_be_read_are_listed_and_the_others_done(tmp_path, scenes, weights):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no image")
    (tmp_path / "in/b.png").write_bytes((scenes / "street/0.png").read_bytes())
    asked = ("--model", "pspnet50", "--weights", weights, "--classes", "pole")
    result = explain(tmp_path / "in", *asked, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"failed: {tmp_path / 'in/a.png'}: not an image" in result.stderr
    assert "1 of 2 images" in result.stdout
    assert written(tmp_path / "out") == ["b_pole.png"]


def test_a_class_that_is_nowhere_is_said_and_its_map_empty(tmp_path, scenes, weights):
    asked = ("--model", "pspnet50", "--weights", weights, "--classes", "sky", "--out", tmp_path)
    result = explain(scenes / "street/0.png", *asked)
    assert result.exit_code == 0
    assert "no pixel is labelled sky in 1 of 1 images" in result.stderr
    image = read_image(scenes / "street/0.png")
    empty = heat(image, np.zeros(image.shape[:2], np.float32))
    np.testing.assert_array_equal(read_image(tmp_path / "0_sky.png"), empty)


def test_names_of_two_words(tmp_path, scenes):
    result = explain(
        scenes / "street/0.png", "--classes", "traffic light", "--out", tmp_path
    )  # shipped smp18
    assert result.exit_code == 0, result.output
    assert written(tmp_path) == ["0_traffic_light.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "pole,tram"), "--classes: 'tram' is no class of camvid: sky, building, pole"),
        (("--classes", ""), "--classes: '' is no class of camvid"),
        (
            ("--classes", "pole", "--layer", "layer4"),
            "--layer: no layer 'layer4' with features; there are backbone, backbone.layer1",
        ),
        (("--classes", "pole", "--dataset", "cityscapes"), "11 classes, but cityscapes has 19"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path, scenes, weights, arguments, message):
    result = explain(
        scenes, "--model", "pspnet50", "--weights", weights, "--out", tmp_path / "out", *arguments
    )
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images(tmp_path):
    result = explain(tmp_path, "--classes", "pole", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no image in this folder" in result.stderr
