import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.publishers import recognise
from fullres.models.weights import WeightsInfo, load_network, save_weights
from fullres.pipeline.data.images import read_labels, write_png
from fullres.pipeline.datasets import DATASETS
from tests.models.test_publishers import difference, logits_of, narrow_state
from tests.models.test_publishers_plain import ccnet_logits, ccnet_state
from tests.networks import narrow
from tests.scenes import render_scene


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def lines(result):
    """What is said beside the file, by kind."""
    return {kind: line for kind, _, line in (line.partition(": ") for line in result.stderr.splitlines())}


def test_a_training_checkpoint_of_mmsegmentation(tmp_path, checkpoint):
    path, out = (
        checkpoint({"meta": {}, "state_dict": narrow_state("pspnet50"), "optimizer": {}}),
        tmp_path / "o",
    )
    out = out.with_suffix(".safetensors")
    result = convert(path, "--model", "pspnet50", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert lines(result) == {
        "recognised": "mmsegmentation: pspnet50, 5 classes, width 0.125",
        "data set": "not said: name it where the weights are used, --dataset",
        "left out": "7 tensors of auxiliary heads, 61 counters num_batches_tracked, optimizer",
        "assumed": "the settings of its usual configurations: the file has none that could differ",
    }
    network, info = load_network("pspnet50", out)
    assert info == WeightsInfo("pspnet50", 1 / 8, 5, None, "mmseg")
    assert difference(logits_of(network), "pspnet50") < 1e-12


@pytest.mark.parametrize(
    "meta",
    [
        {"dataset_meta": {"classes": DATASETS["camvid"].classes}},
        {"CLASSES": [c.upper() for c in DATASETS["camvid"].classes]},
    ],
)
def test_the_data_set_whose_classes_it_lists(tmp_path, checkpoint, meta):
    network = narrow("unet", classes=11)
    out = tmp_path / "o.safetensors"
    result = convert(
        checkpoint({"meta": meta, "state_dict": network.state_dict()}), "--model", "unet", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert lines(result)["data set"] == "camvid"
    assert lines(result)["assumed"] == "its authors' network: the names do not tell"
    assert load_network("unet", out)[1] == WeightsInfo("unet", 1 / 16, 11, "camvid")


def test_whose_network_it_is_where_names_do_not_tell(tmp_path, checkpoint):
    path, out = checkpoint(recognise(narrow_state("hrnet18")).state), tmp_path / "o.safetensors"
    assert convert(path, "--model", "hrnet18", "--like", "mmseg", "--out", out).exit_code == 0
    network, info = load_network("hrnet18", out)
    assert info.like == "mmseg"
    assert difference(logits_of(network), "hrnet18") < 1e-12


def refused(result, message, out):
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


def test_refusals(tmp_path, checkpoint):
    path, out = checkpoint(narrow("unet").state_dict()), tmp_path / "o.safetensors"
    given = (path, "--model", "unet")
    refused(convert(*given, "--out", tmp_path / "o.pth"), "o.pth': .safetensors is written", out)
    refused(convert(*given, "--out", out, "--like", "mmseg"), "--like is 'mmseg': unet has none", out)
    refused(convert(*given, "--out", out, "--dataset", "camvid"), "5 classes, but camvid has 11", out)
    refused(convert(path, "--model", "u", "--out", out), "--model is 'u': one of smp18", out)
    refused(convert(path, "--model", "smp18", "--out", out), "do not fit the network", out)
    save_weights(narrow("pspnet50"), tmp_path / "own.safetensors", WeightsInfo("pspnet50", 1 / 16, 5))
    own = (tmp_path / "own.safetensors", "--model", "pspnet50", "--like", "mmseg", "--out", out)
    refused(convert(*own), "own.safetensors says it is its authors'", out)


def test_a_network_that_reads_images_in_another_way(tmp_path, checkpoint, cluster, monkeypatch):
    """What CCNet's authors' code computes from a picture is what the command line makes of it."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    state, out = ccnet_state(), tmp_path / "o.safetensors"
    result = convert(checkpoint(state), "--model", "ccnet50", "--out", out)
    assert result.exit_code == 0, result.output
    means = "(104.00698793, 116.66876762, 122.67891434)"
    assert lines(result)["recognised"] == "speedinghzl/CCNet: ccnet50, 5 classes, width 0.125"
    assert lines(result)["left out"] == "8 tensors of auxiliary heads"
    assert lines(result)["assumed"] == f"images are read as bgr, less {means}, by (1.0, 1.0, 1.0)"
    picture = render_scene(0, 59, 83)[0]
    write_png(tmp_path / "scene.png", picture)
    given = ["predict", tmp_path / "scene.png", "--model", "ccnet50", "--weights", out, "--dataset", "folder"]
    given += ["--out", tmp_path / "labels", "--precision", "fp32", "--workers", 1]
    assert CliRunner().invoke(app, [*map(str, given)]).exit_code == 0
    blue_first = torch.tensor(picture[..., ::-1].copy()).double() - torch.tensor(eval(means))
    logits = ccnet_logits(state, blue_first.permute(2, 0, 1)[None], "new")[0]
    labels = read_labels(tmp_path / "labels/scene.png")
    best, second = logits.topk(2, 0).values
    assert ((logits.argmax(0).numpy() == labels) | (best - second < 1e-4).numpy()).all()
    assert len(set(labels.ravel())) > 1


def test_what_hrnet_does_not_say(tmp_path, checkpoint):
    network = narrow("hrnet18")
    state = {name.removeprefix("backbone."): t for name, t in network.state_dict().items()}
    path, out = checkpoint(state), tmp_path / "o.safetensors"
    said = "no align_corners; HRNetV2 of the authors' OCR branch has it: --like hrnet-aligned"
    result = convert(path, "--model", "hrnet18", "--out", out)
    assert result.exit_code == 0, result.output
    assert lines(result)["assumed"] == said
    result = convert(path, "--model", "hrnet18", "--out", out, "--like", "hrnet-aligned")
    assert result.exit_code == 0, result.output
    assert "assumed" not in lines(result)
    assert load_network("hrnet18", out)[1].like == "hrnet-aligned"


def test_a_training_from_them_leaves_their_network(tmp_path, checkpoint):
    path = checkpoint(narrow_state("pspnet50")).rename(tmp_path / "theirs.pth")
    image, labels = render_scene(1, 64, 128)
    write_png(tmp_path / "images/1.png", image)
    write_png(tmp_path / "labels/1.png", labels)
    config = (
        f'out = "{tmp_path}/run"\nsteps = 1\nbatch_size = 2\ncrop = [64, 64]\n'
        f'[model]\nname = "pspnet50"\nwidth = 0.125\nweights = "{path}"\n%s[data]\ndataset = "scenes"\n'
        f'workers = 0\nimages = "{tmp_path}/images"\nlabels = "{tmp_path}/labels"\n'
    )
    file = tmp_path / "config.toml"
    train = ["train", str(file), "--threads", "1", "--drop-head"]
    file.write_text(config % "")
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 2
    assert "theirs.pth: like is 'mmseg', of the network none" in result.output
    file.write_text(config % 'like = "mmseg"\n')
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 0, result.output
    weights = tmp_path / "run/weights.safetensors"
    network, info = load_network("pspnet50", weights)
    assert info == WeightsInfo("pspnet50", 1 / 8, 19, "scenes", "mmseg")
    assert network.align_corners is False
    again = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "o.pth")])
    assert "o.pth: pspnet50 like mmseg is written as .safetensors alone" in again.stderr


def test_predict_takes_it_as_it_is(tmp_path, checkpoint, cluster, monkeypatch):
    """And labels as the project's file of it does."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    write_png(tmp_path / "scene.png", render_scene(0, 61, 70)[0])
    own, theirs = tmp_path / "own.safetensors", checkpoint({"state_dict": narrow_state("pspnet50")})
    assert convert(theirs, "--model", "pspnet50", "--out", own).exit_code == 0
    labels = []
    for name, weights in (("theirs", theirs), ("own", own)):
        asked = ("--model", "pspnet50", "--weights", weights, "--dataset", "folder", "--out", tmp_path / name)
        given = map(str, ["predict", tmp_path / "scene.png", *asked, "--precision", "fp32", "--workers", 1])
        result = CliRunner().invoke(app, [*given])
        assert result.exit_code == 0, result.output
        labels.append((tmp_path / name / "scene.png").read_bytes())
    assert labels[0] == labels[1]
