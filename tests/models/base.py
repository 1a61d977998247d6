"""What is asked of every segmentation network, whatever its family.

`check_network(build, classes)` is all of it but `check_export`, which takes seconds: most tests of it are
marked slow. `build()` gives a narrow network with fresh parameters.
"""

import copy
import io

import torch
from torch import Tensor, nn

from tests.networks import with_statistics

SIZES = [(65, 97), (33, 40)]


def check_network(build, classes, sizes=SIZES, training_only=("auxiliary.",)):
    """`training_only`: what the names of those modules start with that evaluation must not compute."""
    check_evaluation(build, classes, sizes)
    check_training(build, classes, sizes)
    check_bf16(build, classes, sizes[0])
    check_training_only(build, sizes[1], training_only)
    check_round_trip(build, sizes[1])


def as_if_trained(build):
    """In evaluation mode. Nothing is zero that training would change: what starts as zero (the last layer of
    a residual branch, a gate) hides all before it."""
    torch.manual_seed(0)
    network = with_statistics(build())
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.uniform_(-0.5, 0.5)
    return network


def settled(build):
    """`as_if_trained`, and batch norm has seen images: no layer's output is larger than the next one's
    softmax can bear."""
    network = as_if_trained(build)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.9
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(image(2, SIZES[0]))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def image(count, size, dtype=torch.float32):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


def tensors(output):
    """All tensors of what a network returns, however they are nested."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in tensors(part)]


def check_evaluation(build, classes, sizes=SIZES):
    """Logits at the image's size, a tensor, finite, of a batch of one; each image by itself."""
    network = settled(build)
    for size in sizes:
        images = image(2, size)
        with torch.no_grad():
            both, second = network(images), network(images[1:])
        assert isinstance(both, Tensor)
        assert both.shape == (2, classes, *size)
        assert second.shape == (1, classes, *size)
        assert both.isfinite().all()
        torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-4 * float(second.abs().max()))


def check_training(build, classes, sizes=SIZES):
    """A named tuple with logits at the labels' size; a loss on all it holds reaches every parameter."""
    for size in sizes:
        network = settled(build).train()
        output = network(image(2, size))
        assert output.logits.shape == (2, classes, *size)
        assert hasattr(output, "_fields")
        assert all(x.isfinite().all() for x in tensors(output))
        sum(x.square().mean() for x in tensors(output)).backward()
        untrained = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert untrained == []
        assert all(p.grad.isfinite().all() for p in network.parameters())


def check_bf16(build, classes, size=SIZES[0]):
    """In evaluation fp32 to bf16's precision; in training it runs, and so does its gradient."""
    network = as_if_trained(build)
    half = copy.deepcopy(network).bfloat16()
    with torch.no_grad():
        expected, logits = network(image(1, size)), half(image(1, size, torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < 0.1 * expected.norm()
    output = half.train()(image(2, size, torch.bfloat16))
    assert output.logits.dtype == torch.bfloat16
    sum(x.float().square().mean() for x in tensors(output)).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


def check_training_only(build, size=SIZES[1], names=("auxiliary.",)):
    """Modules whose names start so are computed in training, not in evaluation; all others in both."""
    network = as_if_trained(build)
    called = set()
    leaves = {name: m for name, m in network.named_modules() if not list(m.children())}
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with_parameters = {name for name, m in leaves.items() if list(m.parameters())}
    with torch.no_grad():
        network.eval()(image(1, size))
        assert {name for name in with_parameters if not name.startswith(names)} <= called
        assert {name for name in called if name.startswith(names)} == set()
        network.train()(image(2, size))
    assert with_parameters <= called


def check_round_trip(build, size=SIZES[1]):
    """Written to a file and read into a fresh network: the same bits."""
    network, file = as_if_trained(build), io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = build().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(image(1, size)), network(image(1, size)))


def check_export(build, size=SIZES[1]):
    """The evaluation form as a graph for one size."""
    network, x = as_if_trained(build), image(1, size)
    graph = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x))
