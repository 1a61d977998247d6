import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.catalogue import build
from fullres.models.weights import WeightsInfo, load_backbone, load_network, save_weights, shipped_weights
from fullres.pipeline.data.images import write_png
from tests.networks import narrow
from tests.scenes import render_scene

SHIPPED = str(shipped_weights()["scenes", "fcn32s18"])


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def saved(path, name="unet", seed=0):
    torch.manual_seed(seed)
    network = build(name, 5, 1 / 16).eval()
    path.parent.mkdir(exist_ok=True)
    save_weights(network, path, WeightsInfo(name, 1 / 16, 5, "folder"))
    return network


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []


def test_the_best_network_of_a_run_comes_first(tmp_path):
    last = saved(tmp_path / "run/weights.safetensors", seed=1)
    assert export(tmp_path / "run", "--out", tmp_path / "last.safetensors").exit_code == 0
    best = saved(tmp_path / "run/best.safetensors", seed=2)
    result = export(tmp_path / "run", "--out", tmp_path / "best.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "best.safetensors")
    for name, network in (("last", last), ("best", best)):
        other, info = load_network("unet", tmp_path / f"{name}.safetensors")
        assert (info.model, info.width, info.num_classes, info.dataset) == ("unet", 1 / 16, 5, "folder")
        assert_equal(other.state_dict(), network.state_dict())


@pytest.mark.parametrize("model", ["pspnet50", "smp18"])
def test_a_run_that_has_only_its_checkpoint(tmp_path, model):
    image, labels = render_scene(1, 64, 128)
    write_png(tmp_path / "images/1.png", image)
    write_png(tmp_path / "labels/1.png", labels)
    (tmp_path / "config.toml").write_text(
        f'out = "{tmp_path}/run"\nsteps = 1\nbatch_size = 2\ncrop = [64, 64]\n'
        f'[model]\nname = "{model}"\nwidth = 0.125\n[data]\ndataset = "scenes"\nworkers = 0\n'
        f'images = "{tmp_path}/images"\nlabels = "{tmp_path}/labels"\n'
    )
    trained = CliRunner().invoke(app, ["train", str(tmp_path / "config.toml"), "--threads", "1"])
    assert trained.exit_code == 0, trained.output
    weights = tmp_path / "run/weights.safetensors"
    expected, _ = load_network(model, weights)
    weights.unlink()
    result = export(tmp_path / "run", "--out", tmp_path / "again.safetensors")
    assert result.exit_code == 0, result.output
    found, info = load_network(model, tmp_path / "again.safetensors")
    assert (info.width, info.num_classes, info.dataset) == (0.125, 19, "scenes")
    assert_equal(found.state_dict(), expected.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_backbone_of_a_run(tmp_path, suffix):
    network = saved(tmp_path / "run/weights.safetensors", "spgnet18x2")
    out = tmp_path / f"backbone{suffix}"
    assert export(tmp_path / "run", "--out", out, "--backbone").exit_code == 0
    other = build("spgnet18x2", 5, 1 / 16).get_submodule("stages.0.encoder")
    load_backbone(other, out)
    expected = network.get_submodule("stages.0.encoder").state_dict()
    assert_equal(other.state_dict(), expected)
    state = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert state.keys() == expected.keys()


def test_a_graph_of_foreign_weights(tmp_path):
    network = narrow("unet")
    torch.save(network.state_dict(), tmp_path / "foreign.pth")
    out = tmp_path / "deep/er/network.pt2"
    result = export(tmp_path / "foreign.pth", "--model", "unet", "--size", "41x33", "--out", out)
    assert result.exit_code == 0, result.output
    image = torch.rand(1, 3, 33, 41)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(image), network(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.bin"], "--out is 'x.bin': weights are .safetensors or .pth, graphs .pt2 or .onnx"),
        (
            ["--out", "x.pt2", "--backbone"],
            "--backbone: an encoder's weights are .safetensors or .pth; --out",
        ),
        (["--out", "x.pth", "--size", "64x64"], "--size is '64x64': only graphs"),
        (["--out", "x.pt2", "--size", "64"], "--size is '64': width x height"),
        (["--out", "x.pt2", "--size", "0x64"], "--size is '0x64': width x height"),
        (["--out", "x.pth", "--model", "fcn32s19"], "--model is 'fcn32s19': one of smp18"),
        (["--out", "x.pth", "--model", "smp18"], "of model fcn32s18, not of smp18"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(export(SHIPPED, *arguments), message)
    assert list(tmp_path.iterdir()) == []


def assert_refused(result, message):
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_is_no_training(tmp_path):
    (tmp_path / "run").mkdir()
    out = tmp_path / "x.pth"
    assert_refused(export(tmp_path / "run", "--out", out), "run: no output of a training: none of best")
    checkpoint = tmp_path / "run/checkpoints/step-00000002.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"damaged")
    assert_refused(export(tmp_path / "run", "--out", out), "step-00000002.pt is no checkpoint of a training")
    torch.save({"config": json.dumps({"model": {}}), "network": {}}, checkpoint)
    assert_refused(export(tmp_path / "run", "--out", out), "step-00000002.pt is no checkpoint of a training")
    torch.save(narrow("unet").state_dict(), tmp_path / "foreign.pth")
    assert_refused(export(tmp_path / "foreign.pth", "--out", out), "do not say which network they are")
    assert not out.exists()


def test_no_graph_for_all_sizes_is_one_line_and_no_file(tmp_path):
    saved(tmp_path / "weights.safetensors")
    out = tmp_path / "out/x.pt2"
    assert_refused(export(tmp_path / "weights.safetensors", "--out", out), "unet has no graph for all sizes")
    assert list(out.parent.iterdir()) == []
