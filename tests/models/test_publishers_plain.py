"""Checkpoints of NVIDIA and of CCNet's authors, against their networks written down layer by layer.

Each reference reads the tensors by its publisher's own names, so that it knows nothing of how they are
renamed. HRNet's layers have the same names everywhere: there the project's own backbone is the reference.
"""

import pytest
import torch
import torch.nn.functional as F

from fullres.models.backbones.hrnet import HRNet
from fullres.models.catalogue import build
from fullres.models.publishers import recognise
from fullres.models.weights import WeightsError, WeightsInfo, load_network, load_pretrained, save_weights
from fullres.ops.normalisation import CAFFE, IMAGENET, normalisation_of
from fullres.pipeline.predict.engines import engine_for
from tests.peers.seeded import seeded_image, seeded_state

torch.set_num_threads(1)

CLASSES = 5
SIZE = (59, 83)


def double(state):
    return {name: t.double() if t.is_floating_point() else t for name, t in state.items()}


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class Layers:
    """Layers of a state dict by name."""

    def __init__(self, state, factor=lambda weight: weight):
        self.state, self.factor = double(state), factor

    def conv(self, x, name, **settings):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **settings)

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, self.factor(weight), bias)


# NVIDIA/semantic-segmentation, network/ocrnet.py, ocr_utils.py and utils.py.

# Channels of HRNet's four branches, and of OCR's pixels and keys.
BRANCHES, PIXELS, KEYS = (4, 8, 16, 32), 42, 21


def nvidia_shapes(two_scale, numbered):
    """`numbered`: HMSA's head as their older code has it."""
    joined = sum(BRANCHES)
    shapes = {f"backbone.{name}": t.shape for name, t in HRNet(48, 1 / 12).state_dict().items()}

    def conv(name, outputs, inputs, kernel=1, bias=False):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("ocr.conv3x3_ocr.0", PIXELS, joined, 3, bias=True)
    norm("ocr.conv3x3_ocr.1.0", PIXELS)
    block = "ocr.ocr_distri_head.object_context_block"
    for transform, inputs, outputs in (
        ("f_pixel.0", PIXELS, KEYS), ("f_pixel.2", KEYS, KEYS), ("f_object.0", PIXELS, KEYS),
        ("f_object.2", KEYS, KEYS), ("f_down.0", PIXELS, KEYS), ("f_up.0", KEYS, PIXELS),
    ):  # fmt: skip
        name, index = transform.split(".")
        conv(f"{block}.{transform}", outputs, inputs)
        norm(f"{block}.{name}.{int(index) + 1}.0", outputs)
    conv("ocr.ocr_distri_head.conv_bn_dropout.0", PIXELS, 2 * PIXELS)
    norm("ocr.ocr_distri_head.conv_bn_dropout.1.0", PIXELS)
    conv("ocr.cls_head", CLASSES, PIXELS, bias=True)
    conv("ocr.aux_head.0", joined, joined, bias=True)
    norm("ocr.aux_head.1.0", joined)
    conv("ocr.aux_head.2", CLASSES, joined, bias=True)
    if two_scale:
        names = ("0", "1", "3", "4", "6") if numbered else ("conv0", "bn0", "conv1", "bn1", "conv2")
        conv(f"scale_attn.{names[0]}", KEYS, PIXELS, 3)
        norm(f"scale_attn.{names[1]}", KEYS)
        conv(f"scale_attn.{names[2]}", KEYS, KEYS, 3)
        norm(f"scale_attn.{names[3]}", KEYS)
        conv(f"scale_attn.{names[4]}", 1, KEYS)
    return shapes


def nvidia_state(two_scale=True, numbered=False):
    return {f"module.{name}": t for name, t in seeded_state(nvidia_shapes(two_scale, numbered)).items()}


def nvidia_at(state, image):
    """Logits and, where there is such a head, the mask, at the image's size."""
    state = {name.removeprefix("module."): t for name, t in state.items()}
    layers = Layers(state)
    backbone = HRNet(48, 1 / 12).eval()
    backbone.load_state_dict(
        {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    )
    with torch.no_grad():
        branches = backbone.double()(image)
    x = torch.cat([resized(branch, branches[0].shape[2:]) for branch in branches], 1)
    height, width = x.shape[2:]

    def transform(y, name, *indices):
        for i in indices:
            y = layers.norm(layers.conv(y, f"{block}.{name}.{i}"), f"{block}.{name}.{i + 1}.0").relu()
        return y

    block = "ocr.ocr_distri_head.object_context_block"
    pixels = layers.norm(layers.conv(x, "ocr.conv3x3_ocr.0", padding=1), "ocr.conv3x3_ocr.1.0").relu()
    coarse = layers.norm(layers.conv(x, "ocr.aux_head.0"), "ocr.aux_head.1.0").relu()
    coarse = layers.conv(coarse, "ocr.aux_head.2")
    weights = coarse.flatten(2).softmax(2)
    regions = torch.einsum("nkp,ncp->nck", weights, pixels.flatten(2))[..., None]
    query = transform(pixels, "f_pixel", 0, 2).flatten(2)
    key = transform(regions, "f_object", 0, 2).flatten(2)
    value = transform(regions, "f_down", 0).flatten(2)
    attention = (torch.einsum("ncp,nck->npk", query, key) * KEYS**-0.5).softmax(2)
    context = torch.einsum("npk,nck->ncp", attention, value).unflatten(2, (height, width))
    x = torch.cat([transform(context, "f_up", 0), pixels], 1)
    name = "ocr.ocr_distri_head.conv_bn_dropout"
    x = layers.norm(layers.conv(x, f"{name}.0"), f"{name}.1.0").relu()
    logits = resized(layers.conv(x, "ocr.cls_head"), image.shape[2:])
    names = [name for name in ("scale_attn.conv{}", "scale_attn.{}") if name.format(0) + ".weight" in state]
    if not names:
        return logits, None
    convs, norms = (("conv0", "conv1", "conv2"), ("bn0", "bn1"))
    if names[0] == "scale_attn.{}":
        convs, norms = ("0", "3", "6"), ("1", "4")
    for conv_name, norm_name in zip(convs, norms, strict=False):
        x = layers.conv(x, f"scale_attn.{conv_name}", padding=1)
        x = layers.norm(x, f"scale_attn.{norm_name}").relu()
    mask = layers.conv(x, f"scale_attn.{convs[2]}").sigmoid()
    return logits, resized(mask, image.shape[2:])


def hmsa(state, image, scales):
    """`nscale_forward`."""
    joint = None
    for scale in sorted(scales, reverse=True):
        size = [int(n * scale) for n in image.shape[2:]]
        logits, mask = nvidia_at(state, resized(image, size))
        if joint is None:
            joint = logits
        elif scale >= 1:
            joint = mask * logits + (1 - mask) * resized(joint, size)
        else:
            joint = resized(mask * logits, joint.shape[2:]) + (1 - resized(mask, joint.shape[2:])) * joint
    return joint


def assert_equal(ours, theirs):
    assert theirs.std() > 0.01 * theirs.abs().max()  # or the comparison says little
    assert (ours - theirs).abs().max() < 1e-12 * theirs.abs().max()


def logits_of(network, image):
    with torch.no_grad():
        return network.double()(image)


def test_ocrnet_of_nvidia(checkpoint, tmp_path):
    state = nvidia_state(two_scale=False)
    image = seeded_image(*SIZE).double()
    network, info = load_network("ocrnet48", checkpoint({"epoch": 3, "state_dict": state, "mean_iu": 0.8}))
    assert (info.like, info.num_classes, info.width) == ("nvidia", CLASSES, 1 / 12)
    expected, _ = nvidia_at(state, image)
    assert_equal(logits_of(network, image), expected)
    save_weights(
        network.float(), tmp_path / "w.safetensors", WeightsInfo("ocrnet48", 1 / 12, 5, like="nvidia")
    )
    assert_equal(logits_of(load_network("ocrnet48", tmp_path / "w.safetensors")[0], image), expected)
    # Neither the authors' nor mmsegmentation's network computes the same from these tensors.
    for like in (None, "mmseg"):
        other = build("ocrnet48", CLASSES, 1 / 12, like)
        other.load_state_dict(recognise({k.removeprefix("module."): t for k, t in state.items()}).state)
        assert (logits_of(other.eval(), image) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize(("name", "scales"), [("hmsa48", (0.5, 1)), ("hmsa48x3", (0.5, 1, 2))])
@pytest.mark.parametrize("size", [SIZE, pytest.param((64, 96), marks=pytest.mark.slow)])
def test_hmsa_of_nvidia(name, scales, size, numbered, checkpoint):
    state = nvidia_state(numbered=numbered)
    image = seeded_image(*size).double()
    network, info = load_network(name, checkpoint({"state_dict": state}))
    assert (info.like, info.num_classes, info.width) == (None, CLASSES, 1 / 12)
    assert_equal(logits_of(network, image), hmsa(state, image, scales))


def test_one_of_nvidias_networks_is_not_another(checkpoint):
    two = checkpoint({"state_dict": nvidia_state()})
    with pytest.raises(WeightsError, match=r"NVIDIA/semantic-segmentation's hmsa, not of ocrnet48$"):
        load_network("ocrnet48", two)
    one = checkpoint({"state_dict": nvidia_state(two_scale=False)})
    with pytest.raises(WeightsError, match=r"NVIDIA/semantic-segmentation's ocrnet, not of hmsa48$"):
        load_network("hmsa48", one)
    with pytest.raises(WeightsError, match=r"w\.pth: like is 'nvidia', not 'mmseg'$"):
        load_network("ocrnet48", one, like="mmseg")


@pytest.mark.parametrize("name", ["ocrnet48", "hmsa48"])
def test_a_training_starts_from_nvidias(name, checkpoint):
    path = checkpoint({"state_dict": nvidia_state(two_scale=name == "hmsa48")})
    like = "nvidia" if name == "ocrnet48" else None
    network = build(name, 3, 1 / 12, like)
    load_pretrained(network, name, path, drop_head=True, like=like)


# speedinghzl/CCNet, networks/ccnet.py; libs/src/bn.cu.

NAMES = {"new": ("conva", "cca", "convb"), "2018": ("conv1a", "pc", "conv1b")}


def ccnet_shapes(names):
    """ResNet-50 with eighths of the channels."""
    shapes = {}

    def conv(name, outputs, inputs, kernel, bias=False):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)

    for i, (inputs, outputs) in enumerate(((3, 8), (8, 8), (8, 16)), 1):
        conv(f"conv{i}", outputs, inputs, 3)
        norm(f"bn{i}", outputs)
    inputs = 16
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        width = 8 * 2 ** (layer - 1)
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            for i, (c_in, c_out, kernel) in enumerate(
                ((inputs, width, 1), (width, width, 3), (width, 4 * width, 1)), 1
            ):
                conv(f"{at}.conv{i}", c_out, c_in, kernel)
                norm(f"{at}.bn{i}", c_out)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * width, inputs, 1)
                norm(f"{at}.downsample.1", 4 * width)
            inputs = 4 * width
    first, attention, second = (f"head.{name}" for name in NAMES[names])
    conv(f"{first}.0", 64, 256, 3)
    norm(f"{first}.1", 64)
    conv(f"{attention}.query_conv", 8, 64, 1, bias=True)
    conv(f"{attention}.key_conv", 8, 64, 1, bias=True)
    conv(f"{attention}.value_conv", 64, 64, 1, bias=True)
    shapes[f"{attention}.gamma"] = (1,)
    conv(f"{second}.0", 64, 64, 3)
    norm(f"{second}.1", 64)
    conv("head.bottleneck.0", 64, 320, 3)
    norm("head.bottleneck.1", 64)
    conv("head.bottleneck.3", CLASSES, 64, 1, bias=True)
    conv("dsn.0", 64, 128, 3, bias=True)
    norm("dsn.1", 64)
    conv("dsn.3", CLASSES, 64, 1, bias=True)
    return shapes


def ccnet_state(names="new"):
    state = seeded_state(ccnet_shapes(names))
    # What trained batch norms have seldom: the sign is lost.
    for i, name in enumerate(name for name in list(state) if name.endswith(".running_mean")):
        state[name.removesuffix("running_mean") + "weight"] *= -1 if i % 3 == 0 else 1
    return state


def ccnet_logits(state, image, names):
    layers = Layers(state, lambda weight: (weight.float().abs() + 1e-5).double())
    x = image
    for i in (1, 2, 3):
        stride = 2 if i == 1 else 1
        x = layers.norm(layers.conv(x, f"conv{i}", stride=stride, padding=1), f"bn{i}").relu()
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for layer, (blocks, stride, dilation) in enumerate(((3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4)), 1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            step = stride if block == 0 else 1
            y = layers.norm(layers.conv(x, f"{at}.conv1"), f"{at}.bn1").relu()
            y = layers.conv(y, f"{at}.conv2", stride=step, padding=dilation, dilation=dilation)
            y = layers.conv(layers.norm(y, f"{at}.bn2").relu(), f"{at}.conv3")
            if block == 0:
                x = layers.norm(layers.conv(x, f"{at}.downsample.0", stride=step), f"{at}.downsample.1")
            x = (layers.norm(y, f"{at}.bn3") + x).relu()
    first, attention, second = (f"head.{name}" for name in NAMES[names])

    def activated(y, conv, norm):
        return F.leaky_relu(layers.norm(layers.conv(y, conv, padding=1), norm), 0.01)

    y = activated(x, f"{first}.0", f"{first}.1")
    height, width = y.shape[2:]
    for _ in range(2):
        query, key, value = (layers.conv(y, f"{attention}.{part}_conv") for part in ("query", "key", "value"))
        context = torch.zeros_like(y)
        for i in range(height):
            for j in range(width):
                cross = [(i, k) for k in range(width)] + [(k, j) for k in range(height) if k != i]
                rows, columns = zip(*cross, strict=True)
                weights = (query[0, :, i, j] @ key[0][:, rows, columns]).softmax(0)
                context[0, :, i, j] = value[0][:, rows, columns] @ weights
        y = layers.state[f"{attention}.gamma"] * context + y
    y = activated(y, f"{second}.0", f"{second}.1")
    y = activated(torch.cat([x, y], 1), "head.bottleneck.0", "head.bottleneck.1")
    logits = layers.conv(y, "head.bottleneck.3")
    return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("size", [(59, 83), (64, 96)])  # of the second pooling rounds up
def test_ccnet_of_its_authors(size, names, checkpoint):
    state = ccnet_state(names)
    image = seeded_image(*size).double()
    network, info = load_network("ccnet50", checkpoint({f"module.{k}": t for k, t in state.items()}))
    assert (info.like, info.num_classes, info.width) == ("ccnet", CLASSES, 1 / 8)
    assert_equal(logits_of(network, image), ccnet_logits(state, image, names))


def test_images_are_read_as_the_authors_read_them(checkpoint, tmp_path):
    network, info = load_network("ccnet50", checkpoint(ccnet_state()))
    save_weights(network, tmp_path / "w.safetensors", WeightsInfo("ccnet50", 1 / 8, 5, like=info.like))
    for loaded in (network, load_network("ccnet50", tmp_path / "w.safetensors")[0]):
        assert normalisation_of(loaded) == engine_for(loaded).normalisation == CAFFE
    assert normalisation_of(build("ccnet50", 5, like="mmseg")) == IMAGENET


def test_a_ccnet_with_another_batch_norm_is_refused(checkpoint):
    state = ccnet_state() | {"bn1.num_batches_tracked": torch.tensor(7)}
    with pytest.raises(WeightsError, match=r"speedinghzl/CCNet's, with names .*: bn1\.num_batches_tracked$"):
        load_network("ccnet50", checkpoint(state))
    state = ccnet_state() | {"head.stages.0.1.weight": torch.zeros(1)}
    with pytest.raises(
        WeightsError, match=r"speedinghzl/CCNet's, with names .*: head\.stages\.0\.1\.weight$"
    ):
        load_network("ccnet50", checkpoint(state))
    with pytest.raises(WeightsError, match=r"w\.pth: speedinghzl/CCNet's ccnet, not of pspnet50$"):
        load_network("pspnet50", checkpoint(ccnet_state()))


def test_a_training_starts_from_ccnets_authors(checkpoint):
    network = build("ccnet50", 3, 1 / 8, "ccnet")
    load_pretrained(network, "ccnet50", checkpoint(ccnet_state()), drop_head=True, like="ccnet")
    assert torch.equal(network.attention.gamma, ccnet_state()["head.cca.gamma"])


# Publishers' settings that neither names nor shapes tell.


@pytest.mark.parametrize(("name", "like"), [("hrnet18", "hrnet-aligned"), ("pspnet50", "mmseg-aligned")])
def test_aligned_corners(name, like, checkpoint, tmp_path):
    """Of HRNetV2 in its authors' OCR branch, and of mmsegmentation's 769x769."""
    usual = None if name == "hrnet18" else "mmseg"
    torch.manual_seed(0)
    network = build(name, CLASSES, 1 / 8, like).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        aligned = network(image)
    save_weights(network, tmp_path / "w.safetensors", WeightsInfo(name, 1 / 8, CLASSES, like=like))
    loaded, info = load_network(name, tmp_path / "w.safetensors")
    assert info.like == like
    with torch.no_grad():
        assert torch.equal(loaded(image), aligned)
        other = build(name, CLASSES, 1 / 8, usual).eval()
        other.load_state_dict(network.state_dict())
        assert not torch.allclose(other(image), aligned, rtol=1e-3)
    if name == "hrnet18":
        path = checkpoint(network.state_dict())
        assert load_network(name, path)[1].like is None
        assert load_network(name, path, like=like)[1].like == like
