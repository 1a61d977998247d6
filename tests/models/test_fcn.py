import pytest
import torch
import torch.nn.functional as F

from fullres.models.catalogue import build

torch.set_num_threads(1)

SIZES = [(64, 96), (65, 97), (1, 1), (37, 5)]


def network(name):
    torch.manual_seed(0)
    return build(name, 6, 1 / 16).double().eval()


def features(resnet, x):
    """He et al., Table 1, read line by line: the outputs of layer2, layer3 and layer4."""
    x = F.max_pool2d(resnet.bn1(resnet.conv1(x)).clamp(min=0), 3, 2, 1)
    out = []
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for block in layer:
            y = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(min=0)))
            if block.downsample is not None:
                x = block.downsample(x)
            x = (x + y).clamp(min=0)
        out.append(x)
    return out[1:]


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", SIZES)
def test_fcn32s_upsamples_the_classifier_on_layer4(size):
    fcn, image = network("fcn32s18"), torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        _, _, c5 = features(fcn.backbone, image)
        scores = fcn(image)
        torch.testing.assert_close(scores, resized(fcn.classifier(c5), size))
        assert [s.shape[-2:] for s in fcn.scores(image)] == [c5.shape[-2:]]
    assert scores.shape == (2, 6, *size)


@pytest.mark.parametrize("size", SIZES)
def test_fcn8s_adds_the_classifiers_of_three_layers_at_output_stride_8(size):
    fcn, image = network("fcn8s18"), torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        c3, c4, c5 = features(fcn.backbone, image)
        fine = c3.shape[-2:]
        total = fcn.classifier8(c3) + resized(fcn.classifier16(c4), fine) + resized(fcn.classifier(c5), fine)
        torch.testing.assert_close(fcn(image), resized(total, size))
        for own, layer in zip(fcn.scores(image), (c3, c4, c5), strict=True):
            assert own.shape == (2, 6, *layer.shape[-2:])


@pytest.mark.parametrize("name", ["fcn32s50", "fcn8s50"])
@pytest.mark.parametrize("size", [(1, 7), (33, 50)])
def test_bottlenecks_and_odd_sizes(name, size):
    with torch.no_grad():
        scores = network(name)(torch.randn(1, 3, *size, dtype=torch.float64))
    assert scores.shape == (1, 6, *size)
    assert scores.isfinite().all()


def test_every_parameter_takes_part():
    fcn = network("fcn8s18")
    fcn(torch.randn(1, 3, 64, 64, dtype=torch.float64)).square().sum().backward()
    assert [name for name, p in fcn.named_parameters() if p.grad is None or not p.grad.any()] == []
