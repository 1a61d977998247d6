"""What `fullres predict` refuses: one line, before work where it can be known."""

import pytest
import ray
import torch

from fullres.pipeline.data.images import write_png
from tests.jobs.predicting import predict, saved
from tests.networks import narrow
from tests.scenes import render_scene

torch.set_num_threads(1)


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
    assert said.startswith("error: no weights come with smp152, name a file (there are some of ")


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
