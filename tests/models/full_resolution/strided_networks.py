"""Networks of many kinds that `split_merge` takes, and what its tests share."""

import torch
import torch.nn.functional as F
from torch import nn

from fullres.models.backbones.resnet import ResNet


class Net(nn.Module):
    """A network from its layers and a function that calls them."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, image):
        return self.call(self, image)


def conv(i, o, kernel=3, stride=1, padding=None, **more):
    return nn.Conv2d(i, o, kernel, stride, kernel // 2 if padding is None else padding, **more)


def vgg():
    layers, channels = [], 3
    for width in (4, 6, 8):
        layers += [conv(channels, width), nn.ReLU(inplace=True), conv(width, width), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2, 2))
        channels = width
    return nn.Sequential(*layers, conv(8, 5, 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 up, depthwise 3x3, 1x1 down without activation."""

    def __init__(self, i, o, stride, expand):
        super().__init__()
        hidden = i * expand
        up = [conv(i, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        self.use_residual = stride == 1 and i == o
        self.conv = nn.Sequential(
            *(up if expand > 1 else []),
            conv(hidden, hidden, 3, stride, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            conv(hidden, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )

    def forward(self, x):
        return x + self.conv(x) if self.use_residual else self.conv(x)


def mobilenet():
    blocks = [(4, 4, 1, 1), (4, 6, 2, 2), (6, 6, 1, 2), (6, 8, 2, 2), (8, 8, 1, 2)]
    stem = nn.Sequential(conv(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
    return nn.Sequential(stem, *(InvertedResidual(*b) for b in blocks), nn.Dropout(0.2), conv(8, 5, 1))


def alexnet():
    return nn.Sequential(
        conv(3, 4, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        conv(4, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), conv(6, 5),
    )  # fmt: skip


class DenseLayer(nn.Module):
    """DenseNet's: normalise and activate first, then join new features to all old ones."""

    def __init__(self, i, growth):
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(i), nn.ReLU(inplace=True), conv(i, growth)

    def forward(self, x):
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


def densenet():
    return nn.Sequential(
        conv(3, 4, 7, 2), nn.MaxPool2d(3, 2, 1), DenseLayer(4, 2), DenseLayer(6, 2),
        nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1), nn.AvgPool2d(2, 2), DenseLayer(4, 3),
    )  # fmt: skip


def functional():
    def call(net, x):
        x = F.relu(net.a(x), inplace=True)
        y = F.max_pool2d(x, 2)
        y += net.b(x)
        y = F.avg_pool2d(F.leaky_relu(y, 0.2), kernel_size=3, stride=2, padding=1, count_include_pad=False)
        return 1 - 0.5 * torch.cat((y, y.relu()), dim=1) * 2

    return Net(call, a=conv(3, 4), b=conv(4, 4, 3, 2))


def finer_skip():
    """The finer features are read by a 3x3 convolution too, so they exist at the fine stride."""

    def call(net, x):
        fine = torch.tanh(net.a(x))
        return net.skip(fine) + net.c(torch.tanh(net.b(fine)))

    return Net(call, a=conv(3, 4), b=conv(4, 4, 3, 2), c=conv(4, 5), skip=conv(4, 5, 1, 2))


def mixed_levels():
    """A sum at stride 2 of features that exist at stride 1 and of others that nobody needs there."""

    def call(net, x):
        a = net.a(x)
        return net.pick(a + net.b(x)) + net.c(a)

    return Net(call, a=conv(3, 4), b=conv(3, 4), c=conv(4, 4, 3, 2), pick=nn.MaxPool2d(1, 2))


def image_twice():
    def call(net, x):
        return net.b(F.relu(net.a(x))) + net.direct(x)

    return Net(call, a=conv(3, 4, 3, 2), b=conv(4, 5, 3, 2), direct=conv(3, 5, 5, 4))


def twice():
    def call(net, x):
        x = net.act(net.stem(x))
        return net.same(net.act(net.same(x))) + x

    return Net(call, stem=conv(3, 4, 3, 2), same=conv(4, 4), act=nn.PReLU(4))


def overwritten():
    """In-place activations change what the other readers of their input see."""

    def call(net, x):
        x = net.a(x)
        alias = x
        y = net.leaky(x)
        late = net.pick(net.b(x))
        x += 1
        return torch.add(net.c(y), other=late) * net.pick(alias)

    leaky = nn.LeakyReLU(0.3, inplace=True)
    return Net(call, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4, 3, 2), leaky=leaky, pick=nn.MaxPool2d(1, 2))


def in_place_on_finer():
    """An in-place activation at stride 2 of features at stride 1 that are read for all four phases."""

    def call(net, x):
        x = net.a(x)
        fine = net.b(x)
        return net.c(net.leaky(x)) + fine

    leaky = nn.LeakyReLU(0.3, inplace=True)
    return Net(call, a=conv(3, 4), b=conv(4, 4, 3, 2), c=conv(4, 4, 1, 2), leaky=leaky)


def several_places():
    def call(net, x):
        x = net.a(x)
        return torch.cat([x * x, x, x + x, x], 1)

    return Net(call, a=conv(3, 4, 3, 2))


# name: network, and whether its windows end inside its padding when the image's size is divisible
NETWORKS = {
    "vgg": (vgg, True),
    "mobilenet": (mobilenet, True),
    "alexnet": (alexnet, False),
    "densenet": (densenet, True),
    "resnet": (lambda: Net(lambda net, x: net.r(x)[3], r=ResNet(18, 1 / 16)), True),
    "functional": (functional, True),
    "finer skip": (finer_skip, True),
    "mixed levels": (mixed_levels, True),
    "image twice": (image_twice, True),
    "layer called twice": (twice, True),
    "overwritten": (overwritten, True),
    "in place on finer features": (in_place_on_finer, True),
    "patches": (lambda: nn.Sequential(conv(3, 4, 4, 4, 0), nn.GELU(), conv(4, 4, 7, groups=4)), True),
    "stride 3": (lambda: nn.Sequential(conv(3, 4, 3, 3), nn.SiLU(), conv(4, 4, 5, 2)), True),
    "rows and columns": (
        lambda: nn.Sequential(conv(3, 4, 3, (2, 1)), nn.MaxPool2d((1, 3), (1, 2), (0, 1)), conv(4, 4)),
        True,
    ),
    "dilated": (
        lambda: nn.Sequential(conv(3, 4, 3, 2, 2, dilation=2), nn.ELU(), conv(4, 4, 3, 1, 3, dilation=3)),
        True,
    ),
    "same": (lambda: nn.Sequential(conv(3, 4, 3, 2), conv(4, 4, 4, 1, "same"), conv(4, 4, 1)), True),
    "even kernel": (lambda: nn.Sequential(conv(3, 4, 2, 1, 0), nn.ReLU(), conv(4, 4, 6, 2, 2)), False),
    "average with padding": (lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, 1), conv(4, 4)), True),
    "average without padding": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv(4, 4)),
        True,
    ),
    "average ceil": (lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, ceil_mode=True), conv(4, 4)), True),
    "average divisor": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(2, 2, divisor_override=3), conv(4, 4)),
        True,
    ),
    "dilated pool": (lambda: nn.Sequential(conv(3, 4), nn.MaxPool2d(3, 2, dilation=2), conv(4, 4)), False),
    "ends in a pick": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(1, 2)), True),
    "no stride": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)), True),
    "one tensor in several places": (several_places, True),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0]().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


def picture(height, width, batch=1):
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
