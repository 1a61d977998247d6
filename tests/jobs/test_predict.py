"""`fullres predict` from images in files to files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import ray
import tifffile
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.weights import WeightsInfo, load_network, save_weights
from fullres.pipeline.data.images import read_image, read_labels, write_png
from fullres.pipeline.data.pictures import colour, overlay
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.execute import Predictor, predict_image
from fullres.pipeline.predict.plan import plan_image
from fullres.pipeline.predict.sources import SOURCES
from fullres.pipeline.scenes import render_scene
from tests.networks import narrow
from tests.shared import DATA

torch.set_num_threads(1)

CAMVID = dataset("camvid")


def saved(path, name="smp18", classes=11, known="camvid", dtype=torch.float32):
    save_weights(narrow(name, 1 / 16, classes), path, WeightsInfo(name, 1 / 16, classes, known), dtype)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights") / "narrow.safetensors")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Five small images in folders, of different sizes and formats."""
    folder = tmp_path_factory.mktemp("scenes")
    for i, size in enumerate([(64, 96), (64, 96), (97, 61), (200, 300)]):
        write_png(folder / f"street/{i}.png", render_scene(i, *size)[0])
    cv2.imwrite(str(folder / "grey.jpg"), render_scene(9, 80, 50)[0][..., 1])
    return folder


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def files(out):
    """All that was written but the summary, whose times differ, and where the images were."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name not in ("summary.json", SOURCES)
    }


def summary(out):
    return json.loads((out / "summary.json").read_text())


def test_outputs_agree_with_each_other_and_with_one_process(cluster, weights, scenes, tmp_path):
    out = tmp_path / "out"
    kinds = ("color", "overlay", "npy", "safetensors")
    result = predict(
        scenes, "--weights", weights, "--out", out, "--precision", "fp32", "--workers", 2, "--memory-budget",
        "200MiB", "--address", cluster.address, *(a for kind in kinds for a in ("--save", kind)),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("5 images labelled in 0:")
    assert result.stdout.rstrip().endswith(f"results in {out}")
    network, _ = load_network("smp18", weights)
    predictor = Predictor(network, torch.device("cpu"), "fp32")
    images = [p for p in scenes.rglob("*") if p.is_file()]
    assert len(images) == 5
    for path in images:
        stem = out / path.relative_to(scenes).with_suffix("")
        image, labels = read_image(path), read_labels(f"{stem}.png")
        scores = np.load(f"{stem}_scores.npy")
        plan = plan_image(
            predictor.tree, image.shape[:2], workers=1, memory_budget=200 << 20, precision="fp32", scores=True
        )
        assert scores.tobytes() == predict_image(predictor, plan, image, scores=True).tobytes()
        assert scores.shape == (11, *image.shape[:2])
        np.testing.assert_array_equal(labels, scores.argmax(0))
        np.testing.assert_array_equal(load_file(f"{stem}_scores.safetensors")["scores"], scores)
        np.testing.assert_array_equal(read_image(f"{stem}_color.png"), colour(labels, CAMVID.palette))
        np.testing.assert_array_equal(
            read_image(f"{stem}_overlay.png"), overlay(image, labels, CAMVID.palette)
        )
    assert len(files(out)) == 5 * 5 + 1

    told = summary(out)
    pixels = sum(read_image(path).size for path in images)
    assert told["images"] == {"done": 5, "already_done": 0, "failed": 0}
    assert told["failures"] == {}
    assert told["bytes"]["image_pixels"] == told["bytes"]["images_out"] == pixels
    assert told["bytes"]["results_back"] == pixels // 3 * 11 * 4
    assert told["settings"]["model"] == "smp18"
    assert told["settings"]["dataset"] == "camvid"
    assert told["settings"]["precision"] == "fp32"
    assert told["settings"]["memory_budget"] == 200 << 20
    assert len(told["workers"]) == 2
    assert sum(w["grains"] for w in told["workers"]) == told["grains"]["done"] >= 5
    assert told["grains"]["run_again"] == 0
    assert all(0 <= w["busy_share"] <= 1 and w["restarts"] == 0 for w in told["workers"])
    assert 0 < told["wall_seconds"] <= told["total_seconds"]
    assert told["tera_operations"] > 0


def same_on_1_2_and_3_workers(cluster, images, weights, tmp_path, *more):
    written = []
    for count in (1, 2, 3):
        out = tmp_path / str(count)
        result = predict(
            *images,
            "--weights",
            weights,
            "--out",
            out,
            "--workers",
            count,
            "--address",
            cluster.address,
            *more,
        )
        assert result.exit_code == 0, result.output
        assert len(summary(out)["workers"]) == count
        written.append(files(out))
    assert written[0] == written[1] == written[2]
    return written[0]


def test_camvid_frames_on_1_2_and_3_workers(cluster, weights, tmp_path):
    frames = sorted((DATA / "camvid" / "val").glob("*.jpg"))[:2]
    if not frames:
        pytest.skip(f"no CamVid at {DATA}; see tests/shared.py")
    written = same_on_1_2_and_3_workers(cluster, frames, weights, tmp_path, "--save", "color")
    assert len(written) == 2 * 2 + 1


@pytest.mark.slow
def test_the_photo_on_1_2_and_3_workers(cluster, weights, tmp_path):
    photo = DATA / "street" / "nyc.jpg"
    if not photo.is_file():
        pytest.skip(f"no photo at {photo}; see tests/shared.py")
    same_on_1_2_and_3_workers(cluster, [photo], weights, tmp_path)
    assert read_labels(tmp_path / "1" / "nyc.png").shape == (1080, 1920)


def test_bf16_weights_and_auto_settings(cluster, scenes, tmp_path):
    weights = saved(tmp_path / "w.safetensors", "fcn8s18", dtype=torch.bfloat16)
    out = tmp_path / "out"
    result = predict(
        scenes / "street",
        "--model",
        "fcn8s18",
        "--weights",
        weights,
        "--out",
        out,
        "--address",
        cluster.address,
    )
    assert result.exit_code == 0, result.output
    told = summary(out)
    assert len(told["workers"]) == 3  # as many as the cluster has CPUs
    precision = told["settings"]["precision"]
    network, _ = load_network("fcn8s18", weights)
    predictor = Predictor(network, torch.device("cpu"), precision)
    image = read_image(scenes / "street/2.png")
    plan = plan_image(predictor.tree, (97, 61), workers=1, memory_budget=4 << 30, precision=precision)
    assert read_labels(out / "2.png").tobytes() == predict_image(predictor, plan, image).tobytes()


@pytest.fixture
def damaged(scenes, tmp_path):
    """Three images of which one is cut short."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        data = (scenes / f"street/{i}.png").read_bytes()
        (folder / f"{i}.png").write_bytes(data[: len(data) // 2] if i == 1 else data)
    return folder


def test_truncated_image_among_others(cluster, weights, damaged, tmp_path):
    out = tmp_path / "out"
    arguments = (damaged, "--weights", weights, "--out", out, "--workers", 1, "--address", cluster.address)
    result = predict(*arguments)
    assert result.exit_code == 1
    reason = (
        f"{damaged}/1.png: PNG file of {(damaged / '1.png').stat().st_size} bytes is cut short or damaged"
    )
    assert f"failed: {reason}\n" in result.stderr
    assert "2 images labelled" in result.stdout
    assert "1 failed" in result.stdout
    assert set(files(out)) == {"0.png", "2.png", "predict.json"}
    assert summary(out)["failures"] == {f"{damaged}/1.png": reason}
    assert summary(out)["images"] == {"done": 2, "already_done": 0, "failed": 1}

    before = files(out)
    result = predict(*arguments, "--strict")  # the two that are there are not done again
    assert result.exit_code == 2
    assert result.stderr.endswith(f"error: {reason}\n")
    assert files(out) == before


def test_killed_and_started_again(cluster, weights, tmp_path):
    """The driver and its cluster die in the middle; the same command does the rest."""
    images = tmp_path / "images"
    for i in range(12):
        write_png(images / f"{i:02}.png", render_scene(i, 128, 160)[0])
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [
        sys.executable, "-m", "fullres.jobs.cli", "predict", images, "--weights", weights, "--workers", "2",
        "--precision", "fp32", "--save", "color", "--out",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*command, broken], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while len(finished(broken)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = finished(broken)
    assert 3 <= len(done) < 12
    assert not (broken / "summary.json").exists()
    times = {path: path.stat().st_mtime_ns for path in done}

    again = (*command[4:], broken, "--address", cluster.address)
    assert predict(*again).exit_code == 0
    assert summary(broken)["images"] == {"done": 12 - len(done), "already_done": len(done), "failed": 0}
    assert {path: path.stat().st_mtime_ns for path in done} == times
    undisturbed = (*command[4:], whole, "--address", cluster.address)
    assert predict(*undisturbed).exit_code == 0
    remains = {name for name in files(broken) if Path(name).name.startswith(".")}  # of what was being written
    assert {n: data for n, data in files(broken).items() if n not in remains} == files(whole)
    assert len(finished(whole)) == 12

    assert "0 images labelled in 0:00, 12 done before" in predict(*undisturbed).stdout


def finished(out):
    return sorted(out.glob("[0-9][0-9].png"))


def test_folder_of_other_settings(cluster, weights, scenes, tmp_path):
    out = tmp_path / "out"
    arguments = (
        scenes / "grey.jpg", "--weights", weights, "--out", out, "--workers", 1, "--address", cluster.address,
        "--memory-budget",
    )  # fmt: skip
    assert predict(*arguments, "300MiB").exit_code == 0
    before = files(out)
    result = predict(*arguments, "200MiB")
    assert result.exit_code == 2
    assert (
        f"error: {out} holds predictions with other settings"
        f" (memory_budget: {300 << 20} there, {200 << 20} now)" in (result.stderr)
    )
    assert files(out) == before


def test_results_are_of_the_images_asked_for(cluster, weights, tmp_path):
    """An image replaced between two runs is labelled again; other images of the same names are refused."""
    images, others, out = tmp_path / "images", tmp_path / "others", tmp_path / "out"
    for i in range(3):
        write_png(images / f"{i}.png", render_scene(i, 64, 96)[0])
        write_png(others / f"{i}.png", render_scene(i + 5, 64, 96)[0])
    common = ("--weights", weights, "--workers", 1, "--address", cluster.address, "--out")
    assert predict(images, *common, out).exit_code == 0
    before = files(out)
    refused = predict(others, *common, out)
    assert refused.exit_code == 2
    assert f"{out} holds the result 0 of {images}/0.png, asked for is {others}/0.png" in refused.stderr
    assert files(out) == before
    write_png(images / "1.png", render_scene(7, 64, 96)[0])
    assert "1 image labelled" in predict(images, *common, out).stdout
    assert predict(images, *common, tmp_path / "afresh").exit_code == 0
    assert files(out) == files(tmp_path / "afresh")
    assert files(out) != before


def test_bands_of_aerial_images(cluster, weights, tmp_path):
    """Of a file that does not say what its bands are: those asked for, and none without asking."""
    image = render_scene(3, 64, 96)[0]
    write_png(tmp_path / "rgb/a.png", image)
    (tmp_path / "bands").mkdir()
    stored = np.dstack([image[..., 1], image[..., 2], 255 - image[..., 0], image[..., 0]])
    how = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"] * 3}
    tifffile.imwrite(tmp_path / "bands/a.tif", stored, **how)
    common = ("--weights", weights, "--workers", 1, "--address", cluster.address, "--out")
    assert predict(tmp_path / "rgb", *common, tmp_path / "truth").exit_code == 0
    unasked = predict(tmp_path / "bands", *common, tmp_path / "unasked")
    assert unasked.exit_code == 1
    assert "bands/a.tif: 4 bands (gray, undefined, undefined, undefined)" in unasked.stderr
    asked = (tmp_path / "bands", *common, tmp_path / "asked")
    assert predict(*asked, "--bands", "4,1,2").exit_code == 0
    assert (tmp_path / "asked/a.png").read_bytes() == (tmp_path / "truth/a.png").read_bytes()
    assert "bands: [4, 1, 2] there, [1, 2, 3] now" in predict(*asked, "--bands", "1,2,3").stderr


def test_a_damaged_manifest_is_named(cluster, weights, scenes, tmp_path):
    (tmp_path / "predict.json").write_text('{"model": ')
    asked = (scenes / "grey.jpg", "--weights", weights, "--out", tmp_path, "--address", cluster.address)
    result = predict(*asked)
    assert result.exit_code == 2
    assert f"error: {tmp_path}/predict.json is damaged" in result.stderr


def refused(tmp_path, *arguments):
    """What standard error says of a command that must end before any work."""
    out = tmp_path / "out"
    result = predict(*arguments, "--out", out)
    assert result.exit_code == 2, result.output
    assert not out.exists()
    assert not ray.is_initialized()
    return result.stderr


def test_names_that_would_meet(tmp_path, weights, scenes):
    folder = tmp_path / "images"
    for name in ("a.png", "a_color.png"):
        write_png(folder / name, render_scene(0, 32, 32)[0])
    said = refused(tmp_path, folder, "--weights", weights, "--save", "color")
    assert said == (
        f"error: {folder}/a_color.png: its class ids would have the name of {folder}/a.png's color;"
        " rename one\n"
    )


def test_results_among_the_images(cluster, tmp_path, weights):
    """A folder of results in the folder of images is fine; the images' own folder is not."""
    folder = tmp_path / "images"
    write_png(folder / "a.png", render_scene(0, 32, 32)[0])
    arguments = (folder, "--weights", weights, "--workers", 1, "--address", cluster.address, "--out")
    result = predict(*arguments, folder)
    assert result.exit_code == 2
    assert f"--out is '{folder}': it holds images that are to be labelled ({folder}/a.png)" in result.stderr
    assert predict(*arguments, folder / "labels").exit_code == 0
    again = predict(*arguments, folder / "labels")
    assert again.exit_code == 0, again.output
    assert "0 images labelled in 0:00, 1 done before" in again.stdout


@pytest.mark.parametrize("name", ["x[bold].png", "x[/].png", "[red]"])
def test_a_name_in_brackets_is_said_as_it_is(tmp_path, weights, name):
    assert name in refused(tmp_path, tmp_path / name, "--weights", weights)


def test_unknown_model(tmp_path, weights, scenes):
    said = refused(tmp_path, scenes, "--weights", weights, "--model", "smp19")
    assert "error: --model is 'smp19': one of smp18, smp34" in said


def test_weights_of_another_network(tmp_path, weights, scenes):
    said = refused(tmp_path, scenes, "--weights", weights, "--model", "fcn32s18")
    assert said == f"error: weights {weights}: of model smp18, not of fcn32s18\n"


def test_weights_of_another_depth_without_metadata(tmp_path, scenes):
    weights = tmp_path / "w.pth"
    torch.save(narrow("smp34", 1 / 16, 11).state_dict(), weights)
    said = refused(tmp_path, scenes, "--weights", weights, "--dataset", "camvid")
    assert said.startswith(
        f"error: weights {weights} do not fit the network. unexpected: backbone.layer1.2.bn1.bias"
    )


def test_weights_of_another_class_count(tmp_path, weights, scenes):
    said = refused(tmp_path, scenes, "--weights", weights, "--dataset", "cityscapes")
    assert said == (
        f"error: weights {weights}: 11 classes, but cityscapes has 19; such weights are a start for "
        "training: fullres train CONFIG.toml --drop-head\n"
    )


def test_no_such_data_set(tmp_path, weights, scenes):
    said = refused(tmp_path, scenes, "--weights", weights, "--dataset", "kitti")
    assert said.startswith("error: --dataset: no data set 'kitti'; there are cityscapes, camvid, gta5,")


def test_weights_that_do_not_say_their_classes(tmp_path, scenes):
    weights = saved(tmp_path / "w.safetensors", known=None)
    assert "--dataset: weights" in refused(tmp_path, scenes, "--weights", weights)


def test_no_weights(tmp_path, scenes):
    missing = tmp_path / "w.safetensors"
    assert refused(tmp_path, scenes, "--weights", missing) == f"error: weights {missing}: no such file\n"
    said = refused(tmp_path, scenes, "--model", "smp152")
    assert "--weights: none come with smp152" in said


def test_empty_folder(tmp_path, weights):
    (tmp_path / "images").mkdir()
    said = refused(tmp_path, tmp_path / "images", "--weights", weights)
    assert said.startswith(f"error: {tmp_path}/images: no image in this folder")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"], ids=["empty", "gif", "signature"])
def test_unreadable_sole_input(tmp_path, weights, data):
    (tmp_path / "a.png").write_bytes(data)
    said = refused(tmp_path, tmp_path / "a.png", "--weights", weights)
    assert said.startswith(f"error: {tmp_path}/a.png: ")
    assert len(said.splitlines()) == 1


def test_budget_too_small(cluster, tmp_path, weights, scenes):
    arguments = (scenes, "--weights", weights, "--address", cluster.address, "--workers", 1)
    said = refused(tmp_path, *arguments, "--memory-budget", "3MiB")
    assert said.startswith(f"error: {scenes}/")
    assert ": memory budget is 3 MiB: at least " in said
    least = said.split("at least ")[1].split(" needed")[0]
    result = predict(*arguments, "--memory-budget", least, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--workers", "0", "'0' is no number of workers: write 1 or more, or auto"),
        ("--workers", "many", "'many' is no number of workers"),
        ("--memory-budget", "4 apples", "'4 apples' is no amount of memory"),
        ("--memory-budget", "-1GiB", "'-1GiB' is no amount of memory"),
        ("--precision", "fp8", "'fp8' is not one of 'auto', 'fp32', 'bf16'"),
        ("--bands", "1,2", "--bands is '1,2': the network reads 3 channels"),
        ("--bands", "0", "--bands is '0'"),
        ("--save", "gif", "'gif' is not one of 'color', 'overlay', 'npy', 'safetensors'"),
    ],
)
def test_bad_option_values(tmp_path, weights, scenes, option, value, expected):
    said = refused(tmp_path, scenes, "--weights", weights, option, value)
    assert expected in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379", "nonsense"])
def test_address_of_no_cluster(tmp_path, weights, scenes, address):
    said = refused(tmp_path, scenes, "--weights", weights, "--address", address)
    assert said.startswith(f"error: no Ray cluster at '{address}' (")
