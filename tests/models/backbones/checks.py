"""What is asked of every backbone."""

import copy

import torch

# Of the four features, by output stride.
STRIDES = {8: (4, 8, 8, 8), 16: (4, 8, 16, 16), 32: (4, 8, 16, 32)}

SIZES = [(64, 96), (1, 1), (45, 33), (2, 7)]


def assert_features(backbone, strides, sizes=SIZES):
    """Four features of `channels`, on the lattices of `strides`, finite, at every size."""
    for size in sizes:
        with torch.no_grad():
            features = backbone(torch.rand(2, 3, *size))
        for x, c, stride in zip(features, backbone.channels, strides, strict=True):
            assert x.shape == (2, c, -(-size[0] // stride), -(-size[1] // stride))
            assert x.isfinite().all()


def assert_formats(backbone):
    """bf16 is fp32 to its precision; channels_last is NCHW to fp32's."""
    image = torch.rand(2, 3, 65, 49)
    last = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    half = copy.deepcopy(backbone).bfloat16()
    with torch.no_grad():
        expected = backbone(image)
        for x, y in zip(last(image.to(memory_format=torch.channels_last)), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
        for x, y in zip(half(image.bfloat16()), expected, strict=True):
            assert x.dtype == torch.bfloat16
            assert (x.float() - y).norm() < 0.1 * y.norm()


def assert_round_trip(backbone, other):
    """`other`'s parameters become those of `backbone`, and so do its features."""
    image = torch.rand(1, 3, 40, 56)
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for x, y in zip(other.eval()(image), backbone(image), strict=True):
            assert torch.equal(x, y)


def assert_all_trained(network, image):
    """A loss on all outputs reaches every parameter."""
    outputs = network.train()(image)
    sum(x.square().mean() for x in outputs).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def assert_same_on_lattice(dilated, strided, image, strides):
    """`dilated`, at output strides `strides`, has on every pixel that `strided` (4, 8, 16, 32) also has, the
    features that `strided` has there."""
    with torch.no_grad():
        for x, y, own, stride in zip(dilated(image), strided(image), strides, (4, 8, 16, 32), strict=True):
            step = stride // own
            torch.testing.assert_close(x[:, :, ::step, ::step], y)
