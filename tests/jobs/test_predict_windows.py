"""`fullres predict` by windows, scales and mirror images."""

import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.catalogue import build
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import read_image, read_labels, write_png
from fullres.pipeline.data.pictures import heat
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows, predict_windows
from tests.scenes import render_scene

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def on_the_cluster(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


def network(name):
    torch.manual_seed(0)
    return build(name, 11, 1 / 16).eval()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    write_png(path, render_scene(0, 130, 170)[0])
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    def saved(name):
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_weights(network(name), path, WeightsInfo(name, 1 / 16, 11, "camvid"))
        return path

    return {name: saved(name) for name in ("pspnet50", "fcn8s18", "spgnet18x2")}


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--precision", "fp32"])


MULTI = ("--scales", "0.5,1,1.25", "--flip", "--window", 64, "--stride", 40)


@pytest.mark.parametrize(("name", "workers"), [("pspnet50", 3), ("fcn8s18", 1)])
def test_any_number_of_workers_gives_the_bytes_of_one_process(tmp_path, scene, weights, name, workers):
    asked = ("--model", name, "--weights", weights[name], "--out", tmp_path, "--workers", workers)
    result = predict(scene, *asked, *MULTI)
    assert result.exit_code == 0, result.output
    spec = WindowSpec((0.5, 1.0, 1.25), True, 64, 40)
    image = render_scene(0, 130, 170)[0]
    predictor = WindowPredictor(network(name), torch.device("cpu"), "fp32")
    expected = predict_windows(predictor, plan_windows((130, 170), spec), image)
    assert np.array_equal(read_labels(tmp_path / "scene.png"), expected)
    settings = json.loads((tmp_path / "predict.json").read_text())
    assert settings["windows"] == {
        "scales": [0.5, 1.0, 1.25], "flip": True, "window": 64, "stride": 40,
        "base_size": None, "average": "probabilities",
    }  # fmt: skip


def test_logits_of_windows_larger_than_a_side(tmp_path, scene, weights):
    """At scale 1 the image is 112x146."""
    asked = ("--model", "pspnet50", "--weights", weights["pspnet50"], "--out", tmp_path, "--save", "npy")
    options = ("--window", 120, "--base-size", 146, "--average", "logits", "--workers", 1)
    assert predict(scene, *asked, *options).exit_code == 0
    spec = WindowSpec(window=120, base_size=146, average="logits")
    predictor = WindowPredictor(network("pspnet50"), torch.device("cpu"), "fp32")
    plan = plan_windows((130, 170), spec)
    assert {grain.scaled for grain in plan.grains} == {(112, 146)}
    expected = predict_windows(predictor, plan, render_scene(0, 130, 170)[0], scores=True)
    assert np.array_equal(np.load(tmp_path / "scene_scores.npy"), expected)


def test_probabilities_sum_to_one(tmp_path, scene, weights):
    asked = ("--model", "pspnet50", "--weights", weights["pspnet50"], "--out", tmp_path, "--save", "npy")
    assert predict(scene, *asked, "--workers", 1).exit_code == 0
    scores = np.load(tmp_path / "scene_scores.npy")
    assert scores.shape == (11, 130, 170)
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)


def test_attention_of_two_workers_is_that_of_one_process(tmp_path, scene, weights):
    asked = ("--model", "spgnet18x2", "--weights", weights["spgnet18x2"], "--out", tmp_path)
    result = predict(scene, *asked, *MULTI, "--workers", 2, "--attention", "car,road")
    assert result.exit_code == 0, result.output
    written = {path.name for path in tmp_path.glob("*.png")}
    assert written == {"scene.png", "scene_attention_car.png", "scene_attention_road.png"}
    image, spec, camvid = read_image(scene), WindowSpec((0.5, 1.0, 1.25), True, 64, 40), dataset("camvid")
    ids = (camvid.classes.index("car"), camvid.classes.index("road"))
    predictor = WindowPredictor(network("spgnet18x2"), torch.device("cpu"), "fp32", ids)
    expected = predict_windows(predictor, plan_windows((130, 170), spec), image)
    assert np.array_equal(read_labels(tmp_path / "scene.png"), expected.classes)
    for name, values in zip(("car", "road"), expected.attention, strict=True):
        assert np.array_equal(read_image(tmp_path / f"scene_attention_{name}.png"), heat(image, values))
    assert json.loads((tmp_path / "predict.json").read_text())["attention"] == ["car", "road"]


def test_pooling_over_training_crops(tmp_path, scene, weights):
    asked = ("--model", "spgnet18x2", "--weights", weights["spgnet18x2"], "--out", tmp_path, "--workers", 1)
    assert predict(scene, *asked, "--pool-crop", 64, "--save", "npy").exit_code == 0
    whole, crops = network("spgnet18x2"), network("spgnet18x2")
    crops.pool_over((64, 64))
    image, plan = read_image(scene), plan_windows((130, 170), WindowSpec())
    expected, other = (
        predict_windows(WindowPredictor(n, torch.device("cpu"), "fp32"), plan, image, True)
        for n in (crops, whole)
    )
    scores = np.load(tmp_path / "scene_scores.npy")
    assert np.array_equal(scores, expected)
    assert not np.allclose(scores, other)
    assert json.loads((tmp_path / "predict.json").read_text())["pool_crop"] == 64


def test_a_folder_is_not_continued_with_other_settings(tmp_path, scene, weights):
    asked = ("--model", "spgnet18x2", "--weights", weights["spgnet18x2"], "--out", tmp_path, "--workers", 1)
    assert predict(scene, *asked, "--attention", "car").exit_code == 0
    result = predict(scene, *asked)
    assert result.exit_code == 2
    assert "attention: ['car'] there, None now" in " ".join(result.stderr.split())
    result = predict(scene, *asked, "--attention", "car")
    assert result.exit_code == 0
    assert "1 done before" in result.stdout


def test_the_peak_of_a_worker_is_within_the_least_budget(tmp_path, scene, weights):
    asked = ("--model", "pspnet50", "--weights", weights["pspnet50"], "--window", 128, "--workers", 1)
    refused = predict(scene, *asked, "--out", tmp_path / "a", "--memory-budget", "1MiB")
    assert refused.exit_code == 2
    assert not list(tmp_path.glob("a/*"))
    message = " ".join(refused.stderr.split())
    least = re.search(
        r"memory budget is 1 MiB: at least (\d+ MiB) needed for a window of 128x128 pixels", message
    )
    result = predict(scene, *asked, "--out", tmp_path / "b", "--memory-budget", least[1].replace(" ", ""))
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "b/summary.json").read_text())
    assert 0 < summary["workers"][0]["peak_bytes"] <= summary["settings"]["memory_budget"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "spgnet18x2", "--attention", "car,boat"), "--attention: 'boat' is no class of camvid: "),
        (("--attention", "car"), "--attention: pspnet50 has no guided attention; SPGNets of two stages have"),
        (("--average", "logits", "--flip"), "--average is logits: without --flip and with one of --scales"),
        (
            ("--average", "logits", "--scales", "1,2"),
            "--average is logits: without --flip and with one of --scales",
        ),
        (("--scales", "0"), "--scales is '0': numbers above 0"),
        (("--scales", "1,x"), "--scales is '1,x': numbers above 0"),
        (("--scales", ""), "--scales is '': numbers above 0, at most 16"),
        (("--pool-crop", 64), "--pool-crop: pspnet50 has no pooling to change; SPGNets have"),
        (("--stride", 5), "--stride is 5: at most --window, which is not given"),
        (("--window", 64, "--stride", 65), "--stride is 65: at most --window, which is 64"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path, scene, weights, arguments, message):
    name = arguments[1] if arguments[0] == "--model" else "pspnet50"
    asked = ("--model", name, "--weights", weights[name], "--out", tmp_path / "out")
    result = predict(scene, *asked, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("out/*.png"))


def test_a_model_without_shipped_weights(tmp_path, scene):
    result = predict(scene, "--model", "ccnet50", "--out", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no weights come with ccnet50, name a file (there are some of ")
