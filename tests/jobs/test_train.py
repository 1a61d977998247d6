import math
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import build
from fullres.models.weights import WeightsInfo, load_network, save_weights
from fullres.pipeline.data.images import write_png
from fullres.pipeline.train import checkpoint
from fullres.pipeline.train.objectives import SegmentationLoss
from tests.scenes import render_scene


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for seed in (1, 2):
        image, labels = render_scene(seed, 64, 128)
        write_png(folder / f"images/{seed}.png", image)
        write_png(folder / f"labels/{seed}.png", labels)
    return folder


@pytest.fixture
def train(scenes, tmp_path):
    """Write a configuration, with some values replaced, and run it."""

    def run(*options, out="run", model="smp18", more="", dataset="scenes", data="", workers=0, **changed):
        values = {
            "steps": 4,
            "batch_size": 2,
            "crop": [64, 64],
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
        } | changed
        lines = [f'out = "{tmp_path / out}"', *(f"{name} = {value!r}" for name, value in values.items())]
        lines += ["[model]", f'name = "{model}"', "width = 0.125", more]
        lines += [
            "[data]",
            f'dataset = "{dataset}"',
            f"workers = {workers}",
            data,
            f'images = "{scenes}/images"',
            f'labels = "{scenes}/labels"',
        ]
        (tmp_path / "config.toml").write_text("\n".join(lines))
        return CliRunner().invoke(app, ["train", str(tmp_path / "config.toml"), *options, "--threads", "1"])

    return run


def test_says_where_bf16_takes_longer_than_fp32(train, monkeypatch):
    for native, precision, said in (("fp32", "bf16", True), ("bf16", "bf16", False), ("fp32", "fp32", False)):
        monkeypatch.setattr("fullres.jobs.train.native_precision", lambda device, native=native: native)
        result = train("--dry-run", model="fcn32s18", precision=precision)
        assert result.exit_code == 0, result.output
        assert ("no instructions for it" in result.stderr) == said


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("smp18", {"phases": [1, 2, 2, 4], "schedule": "poly"}),
        ("fcn32s18", {"precision": "bf16"}),
        ("fcn8s18", {}),
        ("pspnet50", {"optimizer": "sgd"}),
        ("deeplabv3plus-mobilenet", {"more": 'auxiliary = "class_probability"'}),
        ("spgnet18x2", {"optimizer": "sgd", "precision": "bf16"}),
        ("pspnet50", {"more": 'auxiliary = "none"'}),
        ("pspnet50", {"more": "auxiliary_stages = [0, 1, 2, 3]"}),
        ("spgnet50x2-d256", {}),
        ("unet", {}),
    ],
)
def test_leaves_weights_that_predict_takes(train, tmp_path, model, settings):
    result = train(model=model, **settings)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run/weights.safetensors")
    _, info = load_network(model, tmp_path / "run/weights.safetensors")
    assert (info.model, info.width, info.num_classes, info.dataset) == (model, 0.125, 19, "scenes")


@pytest.mark.parametrize(
    "settings",
    [
        {"phases": [1, 1, 2, 2], "workers": 2},  # which read ahead
        {"model": "pspnet50", "optimizer": "sgd"},  # dropout, momentum, an auxiliary head
    ],
)
def test_stopped_and_started_again_ends_with_the_same_bytes(train, tmp_path, monkeypatch, settings):
    settings = {"schedule": "poly", "steps": 5} | settings
    assert train(out="undisturbed", **settings).exit_code == 0
    loss, calls = SegmentationLoss.forward, []

    def stop_in_the_fourth_step(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(SegmentationLoss, "forward", stop_in_the_fourth_step)
    assert train(out="stopped", **settings).exit_code != 0
    assert not (tmp_path / "stopped/weights.safetensors").exists()
    calls.clear()
    assert train(out="stopped", **settings).exit_code == 0
    assert len(calls) == 3  # the third to the fifth: the checkpoint is of the second
    files = [tmp_path / out / "weights.safetensors" for out in ("undisturbed", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_goes_on_without_the_files_it_started_from(train, tmp_path):
    save_weights(build("unet", 5, 0.125), tmp_path / "five.safetensors", WeightsInfo("unet", 0.125, 5))
    settings = {"model": "unet", "more": f'weights = "{tmp_path}/five.safetensors"'}
    assert train("--drop-head", **settings).exit_code == 0
    first = (tmp_path / "run/weights.safetensors").read_bytes()
    (tmp_path / "run/weights.safetensors").unlink()
    (tmp_path / "five.safetensors").unlink()
    assert train(**settings).exit_code == 0
    assert (tmp_path / "run/weights.safetensors").read_bytes() == first


def test_a_folder_of_any_classes(train, tmp_path):
    assert train(model="unet", dataset="folder", data="classes = 23").exit_code == 0
    _, info = load_network("unet", tmp_path / "run/weights.safetensors")
    assert (info.num_classes, info.dataset) == (23, "folder")


def test_where_nothing_can_be_written_it_does_not_begin(train, tmp_path):
    (tmp_path / "run").write_text("in the way")
    result = train(steps=10**6)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "run'" in result.stderr


@pytest.mark.parametrize("content", [b"", b"hello", b"PK"])
def test_a_damaged_checkpoint_is_named(train, tmp_path, content):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-00000002.pt").write_bytes(content)
    result = train()
    assert result.exit_code == 2
    assert "run/checkpoints/step-00000002.pt is no checkpoint of a training; remove it to" in result.stderr


def test_the_loss_falls(train, tmp_path):
    def trained(steps):
        losses = []
        with pytest.MonkeyPatch.context() as patch:
            loss = SegmentationLoss.forward
            patch.setattr(SegmentationLoss, "forward", lambda *a: losses.append(loss(*a)) or losses[-1])
            assert train(steps=steps, phases=[1, 1, 4, 4]).exit_code == 0
        return [float(value.detach()) for value in losses]

    losses = trained(20)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_checkpoint_of_another_configuration_is_refused(train):
    assert train().exit_code == 0
    result = train(learning_rate=2e-3)
    assert result.exit_code == 2
    assert "checkpoints/step-00000004.pt is of another configuration" in result.stderr


def test_the_seed_and_nothing_else_decides(train, tmp_path):
    weights = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(out=out, seed=seed, steps=2).exit_code == 0
        weights.append(load_file(tmp_path / out / "weights.safetensors")["classifier.weight"])
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps = 0: Input should be greater than 0"),
        (
            {"phases": [1, 5, 1, 1]},
            "phases are (1, 5, 1, 1): 1 to 16 of the first, 1 to 4 of each other split",
        ),
        ({"crop": [16, 64]}, "crop is (16, 64): at least 32 x 32"),
        ({"schedule": "cosine"}, "schedule = 'cosine': Input should be 'constant', 'poly' or 'exponential'"),
        (
            {"learnin_rate": 1},
            "config.toml: learnin_rate: no such field (did you mean learning_rate?); there are model, data,",
        ),
        (
            {"more": "with = 1"},
            "model.with: no such field (did you mean width?); there are name, width",
        ),
        ({"seed": -1}, "seed = -1: Input should be greater than or equal to 0"),
        ({"model": "smp19"}, "config.toml: model.name is 'smp19': one of smp18"),
        ({"model": "unet", "phases": [1, 1, 1, 2]}, "phases are (1, 1, 1, 2): only an SMP splits, not unet"),
        ({"loss_stride": 2}, "loss_stride is 2: only FCN32s and FCN8s have one, not smp18"),
        ({"more": "auxiliary_stages = [1, 1]"}, "model.auxiliary_stages is [1, 1]: some of 0, 1, 2, 3"),
        ({"dataset": "folder"}, "data.classes is None: needed with dataset 'folder', and with no other"),
        ({"more": 'backbone_weights = "no.pth"'}, "weights no.pth: no such file"),
        (
            {"more": 'weights = "a.pth"\nbackbone_weights = "b.pth"'},
            "weights is 'a.pth', backbone_weights is 'b.pth': one of them",
        ),
        ({"more": 'weights = "no.pth"'}, "weights no.pth: no such file"),
        (
            {"model": "spgnet18-50", "more": 'backbone_weights = ["a.pth", "b.pth", "c.pth"]'},
            "model.backbone_weights is 'a.pth, b.pth, c.pth': one file, or as many as spgnet18-50 has"
            " backbones, 2",
        ),
        ({"more": 'loss = "ohem"'}, "model.loss is 'ohem': smp18 has cross_entropy"),
        (
            {"model": "spgnet18", "more": 'loss = "rmi"'},
            "model.loss is 'rmi': spgnet18 has ohem or cross_entropy",
        ),
        ({"optimizer": "lion"}, "optimizer = 'lion': Input should be 'adam', 'adamw' or 'sgd'"),
        (
            {"model": "unet", "more": 'backbone_weights = "no.pth"'},
            "backbone_weights is 'no.pth': unet has no backbone that is read (HRNet, MobileNetV2, ResNet)",
        ),
        (
            {"model": "unet", "more": 'auxiliary = "class_probability"'},
            "auxiliary is 'class_probability': unet has no auxiliary heads",
        ),
        (
            {"model": "pspnet50", "batch_size": 1},
            "batch_size is 1: pspnet50 has a batch norm with one value a channel at 64x64 pixels; 2 or more",
        ),
        ({"options": ("--drop-head",)}, "--drop-head: no weights to start from"),
        ({"more": "["}, "is not TOML"),
    ],
)
def test_config_errors_name_field_value_and_what_is_allowed(train, tmp_path, changed, message):
    result = train(*changed.pop("options", ()), **changed)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


STANDSTILL = {"learning_rate": 1e-30, "steps": 1}


def stood_still(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-20)


def test_goes_on_from_a_networks_weights(train, tmp_path):
    assert train(out="first", model="unet").exit_code == 0
    weights = tmp_path / "first/weights.safetensors"
    assert train(out="second", model="unet", more=f'weights = "{weights}"', **STANDSTILL).exit_code == 0
    first, second = (load_file(tmp_path / out / "weights.safetensors") for out in ("first", "second"))
    assert all(stood_still(second[name], t) for name, t in first.items() if "running" not in name)


def test_a_head_for_other_classes_starts_afresh(train, tmp_path):
    torch.manual_seed(5)
    save_weights(build("unet", 5, 0.125), tmp_path / "five.safetensors", WeightsInfo("unet", 0.125, 5))
    settings = {"model": "unet", "more": f'weights = "{tmp_path}/five.safetensors"'} | STANDSTILL
    result = train(**settings)
    assert result.exit_code == 2
    assert "5 classes, the network has 19; a start that drops the head" in result.stderr.splitlines()[-1]
    assert train("--drop-head", **settings).exit_code == 0
    five, own = load_file(tmp_path / "five.safetensors"), load_file(tmp_path / "run/weights.safetensors")
    assert own["classifier.weight"].shape[0] == 19
    fresh = {name for name, t in own.items() if not stood_still(t, five[name]) and "running" not in name}
    assert fresh == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("model", "encoders"),
    [("smp18", ["backbone."]), ("spgnet18x2", ["stages.0.encoder.", "stages.1.encoder."])],
)
def test_every_encoder_starts_from_its_published_weights(train, tmp_path, model, encoders):
    """Later encoders have no stem."""
    torch.manual_seed(5)
    published = ResNet(18, 0.125).state_dict() | {"fc.weight": torch.zeros(1000, 64)}
    torch.save(published, tmp_path / "resnet18.pth")
    result = train(model=model, more=f'backbone_weights = "{tmp_path}/resnet18.pth"', **STANDSTILL)
    assert result.exit_code == 0, result.output
    trained = load_file(tmp_path / "run/weights.safetensors")
    for encoder in encoders:
        own = {n.removeprefix(encoder): t for n, t in trained.items() if n.startswith(encoder)}
        assert any(n.startswith("layer4.") for n in own)
        assert all(stood_still(t, published[n]) for n, t in own.items() if "running" not in n)


def test_encoders_of_different_depths_have_a_file_each(train, tmp_path):
    torch.manual_seed(5)
    files = []
    for depth in (18, 50):
        torch.save(ResNet(depth, 0.125).state_dict(), tmp_path / f"resnet{depth}.pth")
        files.append(str(tmp_path / f"resnet{depth}.pth"))
    result = train(model="spgnet18-50", more=f"backbone_weights = {files}", **STANDSTILL)
    assert result.exit_code == 0, result.output
    trained = load_file(tmp_path / "run/weights.safetensors")
    for stage, file in enumerate(files):
        published = torch.load(file)
        prefix = f"stages.{stage}.encoder."
        own = {n.removeprefix(prefix): t for n, t in trained.items() if n.startswith(prefix)}
        assert any(n.startswith("layer4.") for n in own)
        assert all(stood_still(t, published[n]) for n, t in own.items() if "running" not in n)


def test_a_flipped_bit_of_a_checkpoint_is_not_trained_on(train, tmp_path):
    """Wherever in the weights it is: the run says so and leaves the file as it is."""
    assert train().exit_code == 0
    weights = tmp_path / "run/weights.safetensors"
    trained = weights.read_bytes()
    weights.unlink()
    checkpoint = tmp_path / "run/checkpoints/step-00000004.pt"
    whole = checkpoint.read_bytes()
    for share in (0.3, 0.5, 0.7):
        data = bytearray(whole)
        data[int(len(whole) * share)] ^= 16
        checkpoint.write_bytes(data)
        result = train()
        assert result.exit_code == 2, result.output
        assert re.search(r"0004\.pt is damaged \(.*\); remove it to go on from step 2\n$", result.stderr)
        assert checkpoint.read_bytes() == data
        assert not weights.exists()
    checkpoint.unlink()
    assert train().exit_code == 0
    assert weights.read_bytes() == trained


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {}}, torch.zeros(3)])
def test_a_foreign_checkpoint_is_one_line(train, tmp_path, content):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    torch.save(content, tmp_path / "run/checkpoints/step-00000002.pt")
    result = train()
    assert result.exit_code == 2, result.output
    assert re.fullmatch(
        r"error: .*step-00000002\.pt is no checkpoint of a training; .*", result.stderr.strip()
    )


def test_diverged_weights_are_no_success(train, tmp_path, monkeypatch):
    """Though the loss is finite, as it is where a step ruins what only evaluation reads."""
    loss = SegmentationLoss.forward

    def ruin(self, *arguments):
        value = loss(self, *arguments)
        next(b for n, b in self.network.named_buffers() if n.endswith("running_var")).data.fill_(math.inf)
        return value

    monkeypatch.setattr(SegmentationLoss, "forward", ruin)
    for steps in (1, 4):  # at the end, and at a checkpoint
        result = train(out=f"{steps}", steps=steps)
        assert result.exit_code == 2, result.output
        assert "running_var holds values that are no finite numbers" in result.stderr
        assert not [p for p in (tmp_path / f"{steps}").rglob("*") if p.suffix in (".pt", ".safetensors")]


def test_a_batch_of_one_whose_lattices_can_have_one_value(train, tmp_path):
    """48 pixels have two elements at output stride 32 from the first phases, one from the others."""
    result = train(batch_size=1, crop=[48, 63])
    assert result.exit_code == 2
    assert "batch_size is 1: smp18 has a batch norm with one value a channel at 63x48 pixels" in result.stderr
    assert not (tmp_path / "run").exists()
    assert train(batch_size=1, crop=[48, 64], steps=1).exit_code == 0


def one_line(result):
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.strip().endswith(line)
    return line


def test_a_disk_too_small_is_said_before_work(train, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    monkeypatch.setattr(SegmentationLoss, "forward", lambda *a: pytest.fail("it began"))
    assert re.search(
        r"run: a checkpoint takes \d+ MiB, 3 more .*; the disk has 1 MiB free", one_line(train())
    )


def test_a_disk_that_is_full_leaves_the_last_checkpoint(train, tmp_path, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        line = one_line(train(steps=2, out="fresh"))
    assert "step-00000002.pt: can't be written, the disk may be full; the last checkpoint stays" in line
    assert not list((tmp_path / "fresh/checkpoints").iterdir())
    save = torch.save

    def full_at_the_second(*arguments):
        calls.append(None)
        (save if len(calls) < 2 else full)(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full_at_the_second)
        one_line(train(steps=4, out="second"))
    assert [p.name for p in (tmp_path / "second/checkpoints").iterdir()] == ["step-00000002.pt"]
    assert train(steps=4, out="second").exit_code == 0


def test_a_checkpoint_of_another_network_is_one_line(train, tmp_path):
    assert train(steps=2).exit_code == 0
    path = tmp_path / "run/checkpoints/step-00000002.pt"
    state = torch.load(path, weights_only=True)
    for part, key in (("network", "classifier.bias"), ("optimizer", "param_groups")):
        other = {**state, part: {k: v for k, v in state[part].items() if k != key}}
        torch.save(other, path)
        assert "step-00000002.pt is of another network; remove it" in one_line(train(steps=2))
