"""Small networks in the style of public ones, written as their authors write them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.networks import with_statistics


def conv_bn(i, o, kernel=3, stride=1, dilation=1, groups=1):
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(i, o, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class DRN(nn.Module):
    """Dilated residual network C: stages of one convolution, then dilated blocks with shortcuts."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv_bn(3, 8, 7), conv_bn(8, 8), conv_bn(8, 12, stride=2)])
        self.down = nn.Sequential(nn.Conv2d(12, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.one, self.two = conv_bn(12, 16, stride=2), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.last = conv_bn(16, 16, dilation=2)
        self.seg = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        out = self.norm(self.two(self.one(x)))
        out += self.down(x)
        return self.seg(self.last(F.relu(out, inplace=True)))


def bisenet_path():
    return nn.Sequential(conv_bn(3, 8, 7, 2), conv_bn(8, 8, 3, 2), conv_bn(8, 8, 3, 2), nn.Conv2d(8, 5, 1))


class Downsampler(nn.Module):
    """ERFNet's and ENet's: a strided convolution beside a max pool."""

    def __init__(self, i, o):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(i, o - i, 3, 2, 1), nn.MaxPool2d(2, stride=2)
        self.bn = nn.BatchNorm2d(o, eps=1e-3)

    def forward(self, input):
        return F.relu(self.bn(torch.cat([self.conv(input), self.pool(input)], 1)))


class NonBottleneck(nn.Module):
    def __init__(self, channels, dilated):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.b = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilated), dilation=(1, dilated))
        self.bn, self.dropout = nn.BatchNorm2d(channels), nn.Dropout2d(0.3)

    def forward(self, input):
        output = self.bn(self.b(F.relu(self.a(input))))
        if self.dropout.p != 0:
            output = self.dropout(output)
        return F.relu(output + input)


class ERFNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Downsampler(3, 8), NonBottleneck(8, 1), Downsampler(8, 12)])
        self.layers.append(NonBottleneck(12, 4))
        self.output_conv = nn.Conv2d(12, 5, 1)

    def forward(self, input, predict=False):
        output = input
        for layer in self.layers:
            output = layer(output)
        return self.output_conv(output) if predict else self.output_conv(output) + 0


class ESP(nn.Module):
    """ESPNet's pyramid: reduce, dilated convolutions side by side, sums of them joined."""

    def __init__(self, i, o, stride=1):
        super().__init__()
        n = o // 4
        self.c1 = nn.Conv2d(i, n, 3 if stride == 2 else 1, stride, int(stride == 2), bias=False)
        self.branches = nn.ModuleList(
            nn.Conv2d(n, n, 3, padding=d, dilation=d, bias=False) for d in (1, 2, 4)
        )
        self.bn, self.act = nn.BatchNorm2d(n * 3, eps=1e-3), nn.PReLU(n * 3)
        self.add = stride == 1 and i == n * 3

    def forward(self, input):
        output1 = self.c1(input)
        total, parts = None, []
        for branch in self.branches:
            total = branch(output1) if total is None else total + branch(output1)
            parts.append(total)
        combine = torch.cat(parts, 1)
        return self.act(self.bn(input + combine if self.add else combine))


class ESPNetEncoder(nn.Module):
    """With the image, reduced by average pools, joined to features."""

    def __init__(self):
        super().__init__()
        self.level1, self.sample1 = conv_bn(3, 6, 3, 2), nn.AvgPool2d(3, stride=2, padding=1)
        self.level2_0, self.level2 = ESP(9, 12, 2), ESP(9, 12)
        self.sample2 = nn.ModuleList([nn.AvgPool2d(3, stride=2, padding=1) for _ in range(2)])
        self.classifier = nn.Conv2d(12, 5, 1)

    def forward(self, input):
        half = input
        output0 = torch.cat([self.level1(input), self.sample1(input)], 1)
        for pool in self.sample2:
            half = pool(half)
        output1 = self.level2(self.level2_0(output0))
        return self.classifier(torch.cat([output1, half], 1))


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2, 2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(True), nn.MaxPool2d(2, 2), nn.Conv2d(12, 12, 3, padding=2, dilation=2), nn.ReLU(True),
        nn.Conv2d(12, 5, 1),
    )  # fmt: skip


class DenseLayer(nn.Module):
    def __init__(self, i, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(2 * growth),
            nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, features):
        x = torch.cat(features, 1)
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(3))
        self.head = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(inplace=True), nn.Conv2d(20, 5, 1))

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.cat(features, 1))


class InvertedResidual(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.use_res_connect = stride == 1 and i == o
        self.conv = nn.Sequential(
            nn.Conv2d(i, 2 * i, 1, bias=False), nn.BatchNorm2d(2 * i), nn.ReLU6(inplace=True),
            nn.Conv2d(2 * i, 2 * i, 3, stride, 1, groups=2 * i, bias=False), nn.BatchNorm2d(2 * i),
            nn.Hardswish(inplace=True), nn.Conv2d(2 * i, o, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def mobilenet_v2():
    blocks = [InvertedResidual(6, 8, 2), InvertedResidual(8, 8, 1), InvertedResidual(8, 8, 1)]
    return nn.Sequential(conv_bn(3, 6, 3, 2), *blocks, nn.Dropout(0.2), nn.Conv2d(8, 5, 1))


class CSRNet(nn.Module):
    """Crowd counting: one map of densities, which its authors enlarge at the end."""

    def __init__(self):
        super().__init__()
        self.frontend = vgg()[:-1]
        self.output_layer = nn.Conv2d(12, 1, 1)

    def forward(self, x):
        size = x.size()[2:]
        x = self.output_layer(self.frontend(x)).abs()
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


class DnCNN(nn.Module):
    """Denoising of a one-channel image: the noise is subtracted."""

    def __init__(self):
        super().__init__()
        self.dncnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), *conv_bn(8, 8), nn.Conv2d(8, 1, 3, 1, 1)
        )

    def forward(self, x):
        noise = self.dncnn(x)
        return x - noise


def patch_classifier():
    """A classifier of small patches, run over the image."""
    return nn.Sequential(
        nn.ZeroPad2d(2), nn.Conv2d(3, 8, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 4, 1, 0), nn.ReLU(),
        nn.AvgPool2d(2), nn.Conv2d(12, 16, 2, 1, 0), nn.Sigmoid(), nn.Conv2d(16, 5, 1), nn.LogSoftmax(dim=1),
    )  # fmt: skip


class SpatialAttention(nn.Module):
    """CBAM's: a gate from maximum and mean over the channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.sigmoid = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.Sigmoid()

    def forward(self, x):
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out, _ = torch.max(x, dim=1, keepdim=True)
        return self.sigmoid(self.conv1(torch.cat([avg_out, max_out], dim=1)))


class CBAM(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.sa = conv_bn(3, 8, 3, 2), SpatialAttention()
        self.head = nn.Conv2d(8, 5, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        assert x.shape[1] == 8
        return self.head(x * self.sa(x))


class StdConv2d(nn.Conv2d):
    def forward(self, x):
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - m) / torch.sqrt(v + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def weight_standardised():
    stem = nn.Sequential(StdConv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, StdConv2d(8, 5, 3, 2, 1))


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, n):
        super().__init__()
        for name, value in {"weight": 1.3, "bias": 0.2, "running_mean": 0.1, "running_var": 0.7}.items():
            self.register_buffer(name, torch.full((n,), value) + torch.arange(n) / 10)

    def forward(self, x):
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = w * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (b - self.running_mean.reshape(1, -1, 1, 1) * scale)


def frozen():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), FrozenBatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, 2, 1, bias=False), FrozenBatchNorm2d(8), nn.Conv2d(8, 5, 1),
    )  # fmt: skip


class LayerNorm(nn.LayerNorm):
    """Over the channels, as ConvNeXt has it."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.rand(dim))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm(8), Block(8), nn.Conv2d(8, 5, 1))


class ShuffleUnit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(*conv_bn(channels // 2, channels // 2, 3, 1, 1, channels // 2))

    def forward(self, x):
        x1, x2 = x.chunk(2, dim=1)
        out = torch.cat((x1, self.branch(x2)), dim=1)
        batch, channels, height, width = out.size()
        out = out.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return out.view(batch, -1, height, width)


def shufflenet():
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), ShuffleUnit(8), nn.MaxPool2d(3, 2, 1), ShuffleUnit(8), nn.Conv2d(8, 5, 1)
    )


class Focus(nn.Module):
    """YOLOv5's space to depth, and ResNet's shortcut of option A."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = conv_bn(12, 8), nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x):
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        x = self.conv(torch.cat(parts, 1))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        return F.relu(self.next(x) + shortcut)


class Dictionary(nn.Module):
    """Returns what torchvision's segmentation networks return."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head, self.aux = conv_bn(3, 8, 3, 2), nn.Conv2d(8, 5, 3, 1, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))

    def forward(self, x):
        features = self.backbone((x - self.mean) / 0.3)
        return {"out": self.head(features), "aux": [self.aux(features), None]}


PUBLIC: dict[str, Callable[[], nn.Module]] = {
    "drn": DRN, "bisenet path": bisenet_path, "erfnet": ERFNet, "espnet": ESPNetEncoder, "vgg": vgg,
    "densenet": DenseNet, "mobilenet v2": mobilenet_v2, "csrnet": CSRNet, "dncnn": DnCNN,
    "patches": patch_classifier, "cbam": CBAM, "weight standardised": weight_standardised, "frozen": frozen,
    "convnext": convnext, "shufflenet": shufflenet, "focus": Focus, "dictionary": Dictionary,
}  # fmt: skip
OUTPUT = {"dictionary": "out"}


def public(name: str) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(PUBLIC[name]())
