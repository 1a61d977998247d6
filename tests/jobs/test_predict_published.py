"""`fullres predict` with weights that are no local file: an address, a name of the table."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.weights import WeightsInfo, save_weights
from fullres.pipeline.data.images import read_labels, write_png
from fullres.pipeline.predict import published as table
from fullres.pipeline.predict.published import Published
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows, predict_windows
from tests.networks import narrow
from tests.scenes import render_scene


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_weights(narrow("pspnet50"), folder / "a.safetensors", WeightsInfo("pspnet50", 1 / 16, 5))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.safetensors", folder / "a.safetensors"
    server.shutdown()
    server.server_close()


@pytest.fixture
def predict(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("FULLRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_png(tmp_path / "scene.png", render_scene(0, 60, 70)[0])

    def run(*arguments, out="out"):
        given = ["predict", tmp_path / "scene.png", "--out", tmp_path / out]
        given += ["--precision", "fp32", "--workers", 1]
        return CliRunner().invoke(app, [*map(str, [*given, *arguments])])

    return run


def known_as(monkeypatch, served, digest):
    row = Published("mmseg:a", "pspnet50", None, "folder", 50.0, digest, served)
    monkeypatch.setattr(table, "published", lambda: {row.name: row})


def test_an_address_and_a_name_are_the_file(predict, served, tmp_path, monkeypatch):
    address, file = served
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    asked = ("--model", "pspnet50", "--dataset", "folder", "--weights", address)
    assert predict(*asked, out="address").exit_code == 0
    known_as(monkeypatch, address, digest[:8])
    result = predict("--weights", "mmseg:a", out="name")
    assert result.exit_code == 0, result.output
    for out in ("address", "name"):
        settings = json.loads((tmp_path / out / "predict.json").read_text())
        assert settings["model"] == "pspnet50"
        assert settings["weights"] == digest[:16]
        labels = read_labels(tmp_path / out / "scene.png")
        plan = plan_windows((60, 70), WindowSpec())
        predictor = WindowPredictor(narrow("pspnet50"), torch.device("cpu"), "fp32")
        assert np.array_equal(labels, predict_windows(predictor, plan, render_scene(0, 60, 70)[0]))


@pytest.mark.parametrize(
    ("arguments", "digest", "said"),
    [
        (("--weights", "mmseg:a", "--model", "ann50"), "", "--model is 'ann50': mmseg:a is of pspnet50"),
        (("--weights", "mmseg:a"), "00000000", "not 00000000...: another file, or damaged on its way"),
        (("--weights", "mmseg:b"), "", "weights mmseg:b: not in the table; near ones: mmseg:a"),
        (("--weights", "hf://a/b"), "", "weights hf://a/b: hf://owner/repository/file"),
    ],
)
def test_mistakes_are_one_line_before_work(predict, served, tmp_path, monkeypatch, arguments, digest, said):
    known_as(monkeypatch, served[0], digest)
    result = predict(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_what_the_server_has_not_is_one_line(predict, served):
    result = predict("--model", "pspnet50", "--weights", served[0].replace("a.safe", "b.safe"))
    assert result.exit_code == 2
    assert "b.safetensors: the server says 404" in " ".join(result.stderr.split())
