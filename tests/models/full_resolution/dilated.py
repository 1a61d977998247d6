"""What a residual network computes without subsampling, in two ways that share no code with the tree.

`dilated` keeps every feature map at the size of the image: strides are gone, a convolution behind n splits
has dilation 2**n and zero padding to match.

`split` is Fig. 3 of "Split-Merge Pooling" to the letter: strides set to 1x1, split pooling after the batch
norm of conv1, in place of max pooling, and after that of every convolution that had a stride; five merges at
the end. It works on lists of split batches, since those of an odd-sized image differ in size.
"""

import torch.nn.functional as F

from fullres.ops.pooling import MergePool2d, SplitPool2d


def dilated(network, image):
    """Scores (N, classes, H, W) of an FCN32s or SMP."""
    resnet = network.backbone
    x = F.relu(resnet.bn1(_conv(resnet.conv1, image, 1)))
    dilation = 4  # conv1's split, and the one in place of max pooling
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for block in layer:
            shortcut = x
            if block.downsample is not None:
                conv, norm = block.downsample
                shortcut = norm(_conv(conv, x, dilation))
            *inner, last = _convolutions(block)
            for conv, norm in inner:
                x = F.relu(norm(_conv(conv, x, dilation)))
                dilation *= conv.stride[0]  # the strided convolution keeps the old one
            conv, norm = last
            x = F.relu(norm(_conv(conv, x, dilation)) + shortcut)
    return network.classifier(x)


def split(network, image):
    """The same as `dilated`, through the paper's layers."""
    resnet = network.backbone
    pool, merge = SplitPool2d(2), MergePool2d(2)
    batches = [resnet.bn1(_conv(resnet.conv1, image, 1))]
    batches = [F.relu(x) for x in pool(batches)]
    batches = pool(batches)
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for block in layer:
            shortcuts = batches
            if block.downsample is not None:
                conv, norm = block.downsample
                shortcuts = [norm(_conv(conv, x, 1)) for x in batches]
                shortcuts = pool(shortcuts) if conv.stride[0] == 2 else shortcuts
            *inner, last = _convolutions(block)
            for conv, norm in inner:
                batches = [norm(_conv(conv, x, 1)) for x in batches]
                batches = pool(batches) if conv.stride[0] == 2 else batches
                batches = [F.relu(x) for x in batches]
            conv, norm = last
            batches = [F.relu(norm(_conv(conv, x, 1)) + s) for x, s in zip(batches, shortcuts, strict=True)]
    batches = [_conv(network.classifier, x, 1) for x in batches]
    for _ in range(5):
        batches = merge(batches)
    (scores,) = batches
    return scores


def _convolutions(block):
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    return [*pairs, (block.conv3, block.bn3)] if hasattr(block, "conv3") else pairs


def _conv(conv, x, dilation):
    if 0 in x.shape:  # an empty split batch stays empty
        return x.new_empty((x.shape[0], conv.out_channels, *x.shape[2:]))
    return F.conv2d(x, conv.weight, conv.bias, 1, dilation * (conv.kernel_size[0] // 2), dilation)
