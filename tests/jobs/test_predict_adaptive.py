"""`fullres train` of a downsampler and of a network behind it, and `fullres predict --size --adaptive`."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.downsampler import Downsampler
from fullres.models.weights import WeightsInfo, load_network, save_weights
from fullres.ops.sampling import sample
from fullres.pipeline.data.images import read_image, read_labels, write_png
from fullres.pipeline.predict.adaptive import adaptive_engine
from fullres.pipeline.predict.engines import Resources, label_image
from fullres.pipeline.predict.sampler import Sampler, load_downsampler
from tests.cluster.trainings import course_of
from tests.jobs.predicting import camvid_of_scenes, predict, saved
from tests.models import base
from tests.scenes import render_scene

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def on_the_cluster(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three scenes, a network's weights and a downsampler's."""
    folder = tmp_path_factory.mktemp("files")
    for i, size in enumerate([(64, 96), (97, 61), (130, 170)]):
        write_png(folder / f"scenes/{i}.png", render_scene(i, *size)[0])
    saved(folder / "unet.safetensors", "unet", 19, "scenes")
    network = base.as_if_trained(lambda: Downsampler(8, 8)).eval()
    save_weights(network, folder / "where.safetensors", WeightsInfo("downsampler8", 1 / 32, 19, "scenes"))
    return folder


def asked(files, *more):
    weights = ("--model", "unet", "--weights", files / "unet.safetensors", "--precision", "fp32")
    return predict(files / "scenes", *weights, *more)


def in_one_process(files, path, points, adaptive):
    network = load_network("unet", files / "unet.safetensors")[0]
    where = load_downsampler(str(files / "where.safetensors"), torch.device("cpu")) if adaptive else None
    engine = adaptive_engine(network, Sampler(points, where))
    runner = engine.predictor(torch.device("cpu"), "fp32")
    return label_image(engine, runner, read_image(path), Resources(1, 4 << 30, "fp32", "cpu"))


@pytest.mark.parametrize(
    ("size", "points", "adaptive", "workers"),
    [("32", (32, 32), False, 1), ("64x48", (48, 64), True, 2)],
)
def test_any_number_of_workers_gives_the_bytes_of_one_process(
    files, tmp_path, size, points, adaptive, workers
):
    more = ("--adaptive", files / "where.safetensors") if adaptive else ()
    result = asked(files, "--size", size, *more, "--workers", workers, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for path in sorted((files / "scenes").iterdir()):
        expected = in_one_process(files, path, points, adaptive)
        assert np.array_equal(read_labels(tmp_path / path.name), expected)
    sampling = json.loads((tmp_path / "predict.json").read_text())["sampling"]
    assert sampling["size"] == list(points)
    assert (sampling["downsampler"] is not None) == adaptive


@pytest.mark.parametrize("adaptive", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pictures_of_where_it_looked(files, tmp_path, adaptive):
    more = ("--adaptive", files / "where.safetensors") if adaptive else ()
    out = tmp_path / "out"
    assert asked(files, "--size", "40x32", *more, "--save", "points", "--out", out).exit_code == 0
    where = load_downsampler(str(files / "where.safetensors"), torch.device("cpu")) if adaptive else None
    for path in (files / "scenes").iterdir():
        image = read_image(path)
        phi = Sampler((32, 40), where).at(image)
        assert np.array_equal(read_image(out / f"{path.stem}_sampled.png"), sample(image, phi))
        grid, points = (read_image(out / f"{path.stem}_{kind}.png") for kind in ("grid", "points"))
        dots = (grid == (255, 40, 40)).all(-1)
        assert dots[[0, 0, -1, -1], [0, -1, 0, -1]].all()
        assert np.array_equal(grid[~dots], image[~dots])
        assert points.any(-1).sum() >= dots.sum()
        assert np.array_equal(read_labels(out / path.name), in_one_process(files, path, (32, 40), adaptive))
    assert len(list(out.glob("*.png"))) == 12


def test_results_of_other_points_are_not_gone_on_with(files, tmp_path):
    assert asked(files, "--size", "32", "--workers", 1, "--out", tmp_path / "out").exit_code == 0
    for more in (("--size", "33"), ("--size", "32", "--adaptive", files / "where.safetensors"), ()):
        result = asked(files, *more, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "sampling" in result.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--size", "1"), "--size is '1': at least 2 pixels a side"),
        (("--size", "1x5"), "--size is '1x5': at least 2 pixels a side"),
        (("--size", "a"), "--size is 'a': width x height in pixels"),
        (
            ("--adaptive", "w.safetensors"),
            "--adaptive is 'w.safetensors': say with --size or --gflops how many",
        ),
        (("--save", "points"), "--save is 'points': say with --size or --gflops how many"),
        (("--size", "32", "--gflops", "1"), "--gflops is 1: without --size, which it finds"),
        (("--gflops", "0.00001"), "--gflops is 1e-05: not enough for 8x8 points with this network"),
        (("--size", "128"), "scenes/0.png: 96x64 pixels are fewer than the 128x128 to label it from"),
        (("--size", "32", "--adaptive", "w.safetensors"), "weights w.safetensors: no such file"),
        (("--size", "32", "--output-stride", "2"), "output stride is 2: of split-merge, which is without"),
        (("--output-stride", "2"), "output stride is 2: of split-merge, which is without windows"),
    ],
)
def test_mistakes_are_one_line_before_work(files, tmp_path, more, said):
    result = asked(files, *more, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_weights_of_the_other_kind(files, tmp_path):
    unet, where = files / "unet.safetensors", files / "where.safetensors"
    result = asked(files, "--size", "32", "--adaptive", unet, "--out", tmp_path / "out")
    assert "of a network that labels images, not of a downsampler" in " ".join(result.stderr.split())
    result = predict(
        files / "scenes", "--model", "downsampler8", "--weights", where, "--out", tmp_path / "out"
    )
    assert result.exit_code == 2
    assert "--model is 'downsampler8': it says where to sample an image" in " ".join(result.stderr.split())


@pytest.fixture
def train(tmp_path):
    camvid_of_scenes(tmp_path / "camvid", 64, 128)

    def run(name, out, sampling="", model="", **changed):
        values = {"steps": 2, "batch_size": 2, "crop": [64, 128], "learning_rate": 1e-3, "evaluate_every": 2}
        lines = [f'out = "{tmp_path / out}"', *(f"{k} = {v!r}" for k, v in (values | changed).items())]
        lines += ["[model]", f'name = "{name}"', "width = 0.0625", model, "[sampling]", sampling]
        lines += ["[data]", 'dataset = "camvid"', f'root = "{tmp_path}/camvid"', 'validation = "val"']
        (tmp_path / "config.toml").write_text("\n".join(lines))
        return CliRunner().invoke(app, ["train", str(tmp_path / "config.toml"), "--threads", "1"])

    return run


@pytest.mark.parametrize(("loss", "joint"), [("", ""), ('loss = "energy"', "joint = 0.5")])
def test_from_label_maps_to_labels(train, tmp_path, loss, joint):
    """A downsampler learns, a network learns behind it, alone or with it, and what its training scored is
    what `predict` and `evaluate` say."""
    where = tmp_path / "where/weights.safetensors"
    sampling = 'target_classes = ["car", "road"]\nsmoothness = 0.1'
    assert train("downsampler8", "where", sampling, model=loss).exit_code == 0
    of_targets = [m for m in course_of(tmp_path / "where") if "class_iou" in m][-1]
    scored = [of_targets["class_iou"][name] for name in ("car", "road")]
    assert of_targets["mean_iou"] == pytest.approx(np.nanmean(np.array(scored, float)))
    result = train("unet", "net", f'size = [32, 48]\nauxiliary = "{where}"\n{joint}')
    assert result.exit_code == 0, result.output
    scored = next(line["mean_iou"] for line in course_of(tmp_path / "net") if "mean_iou" in line)
    if joint:
        before, where = load_file(where), tmp_path / "net/sampler-weights.safetensors"
        learned = load_file(where)
        assert before.keys() == learned.keys()
        assert all(learned[name].shape == before[name].shape for name in before)
        assert any(not torch.equal(learned[name], before[name]) for name in before)
    weights = ("--model", "unet", "--weights", tmp_path / "net/weights.safetensors", "--precision", "fp32")
    points = ("--size", "48x32", "--adaptive", where, "--workers", 1)
    assert predict(tmp_path / "camvid/val", *weights, *points, "--out", tmp_path / "labels").exit_code == 0
    truth = (tmp_path / "labels", tmp_path / "camvid/valannot", "--dataset", "camvid")
    given = ["evaluate", *truth, "--json", tmp_path / "scores.json"]
    assert CliRunner().invoke(app, [*map(str, given)]).exit_code == 0
    assert json.loads((tmp_path / "scores.json").read_text())["mean_iou"] == pytest.approx(scored, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "sampling", "said"),
    [
        ("downsampler8", "size = [8, 8]", "sampling.size is [8, 8]: downsampler8 samples nothing"),
        ("downsampler8", 'target_classes = ["boat"]', "'boat' is no class of camvid: sky, building"),
        ("unet", "smoothness = 0.5", "sampling.smoothness is 0.5, target_classes are []: of a downsampler's"),
        ("unet", 'auxiliary = "a"', "auxiliary is 'a': of a training with a size"),
        ("unet", "size = [9, 9]\njoint = 1", "joint is 1.0: of a training with an auxiliary, which learns"),
        ("unet", "size = [1, 9]", "size is [1, 9]: at least 2 points a side"),
        ("unet", 'size = [9, 9]\nauxiliary = "a.safetensors"', "weights a.safetensors: no such file"),
    ],
)
def test_mistakes_end_a_training_before_any_work(train, tmp_path, name, sampling, said):
    result = train(name, "run", sampling)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "run/metrics.jsonl").exists()
