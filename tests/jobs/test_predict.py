"""`fullres predict` from images in files to files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.numpy import load_file

import fullres
from fullres.models.weights import load_network
from fullres.pipeline.data.images import read_image, read_labels, write_png
from fullres.pipeline.data.pictures import colour, overlay
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.execute import Predictor, predict_image
from fullres.pipeline.predict.plan import plan_image
from fullres.pipeline.predict.sources import SOURCES
from tests.jobs.predicting import predict, saved
from tests.scenes import render_scene
from tests.shared import DATA

torch.set_num_threads(1)

CAMVID = dataset("camvid")


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


@pytest.mark.slow
def test_camvid_frames_on_1_2_and_3_workers(cluster, weights, tmp_path):
    frames = sorted((DATA / "camvid" / "val").glob("*.jpg"))[:2]
    if not frames:
        pytest.skip(f"no CamVid at {DATA}; see tests/shared.py")
    written = same_on_1_2_and_3_workers(cluster, frames, weights, tmp_path, "--save", "color")
    assert len(written) == 2 * 2 + 1


def test_a_photograph_without_weights_at_hand(cluster, tmp_path):
    """CamVid's classes by those that come with the project, from the command line and from Python."""
    frames = sorted((DATA / "camvid" / "val").glob("*.jpg"))[:1]
    if not frames:
        pytest.skip(f"no CamVid at {DATA}; see tests/shared.py")
    asked = ("--dataset", "camvid", "--precision", "fp32", "--workers", 2, "--address", cluster.address)
    result = predict(*frames, "--out", tmp_path, *asked)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "predict.json").read_text())["dataset"] == "camvid"
    labels = read_labels(tmp_path / f"{frames[0].stem}.png")
    network = fullres.load("smp18", dataset="camvid")
    assert labels.tobytes() == fullres.predict(frames[0], network, precision="fp32").tobytes()
    truth = CAMVID.read(DATA / "camvid" / "valannot" / f"{frames[0].stem}.png")
    assert (labels == truth)[truth != CAMVID.ignore_index].mean() > 0.8


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
        sys.executable, "-m", "fullres.jobs.cli", "predict", images, "--weights", weights, "--precision",
        "fp32", "--save", "color", "--out",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*command, broken, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
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

    one = ("--workers", 1, "--address", cluster.address)
    again = (*command[4:], broken, *one)
    assert predict(*again).exit_code == 0
    assert summary(broken)["images"] == {"done": 12 - len(done), "already_done": len(done), "failed": 0}
    assert {path: path.stat().st_mtime_ns for path in done} == times
    undisturbed = (*command[4:], whole, *one)
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
