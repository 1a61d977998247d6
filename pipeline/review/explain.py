"""Where a network finds its evidence for a class: Seg-Grad-CAM (Vinogradova et al., AAAI 2020), which is
Grad-CAM (Selvaraju et al., ICCV 2017) for segmentation, as in the figures of the SeeThroughNet paper.

Let y be the sum of a class's logits over the pixels that are labelled as that class, A a layer's features of
k channels, and alpha_k the mean of dy / dA_k over all positions. The map is ReLU(sum_k alpha_k A_k), resized
to the image and divided by its maximum.

- The layer is the last of the backbone, of U-Net the lowest level, unless another is named: Grad-CAM's "last
  convolutional layer", Seg-Grad-CAM's bottleneck. (SeeThroughNet's text names none.) What the classifier
  itself reads would say little: there the map is the class's logits again, without their bias. FCN32s and
  SMP, whose classifier reads the backbone, are like that.
- A layer that gives several features (HRNet's branches) or runs several times (at both resolutions of
  SeeThroughNet) counts as one whose features are all resized to the finest of them and put side by side.
  Resizing keeps the sum of gradients, so each is weighed by its own sum: the mean, but for a factor that the
  division takes out.
- SMP is looked at on every fourth pixel of each row and column: there its dilated form has SMP's own features
  and logits, in a sixteenth of the dense form's memory.
- The network sees the whole image at once. Gradients are kept from the layer on and for no parameter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.models.parts import resize
from fullres.models.smp import SMP
from fullres.ops.convolution import compute_exactly
from fullres.ops.errors import FullresError
from fullres.ops.normalisation import normalisation_of, normalise

_PROBE = 64  # pixels a side of an image that shows which layers give features


class LayerError(FullresError, ValueError):
    """No such layer, or one without features. One line that names those there are."""


class Evidence(NamedTuple):
    """Of one class in one image. `map` is H x W float32 in [0, 1], zero everywhere where no pixel is labelled
    as the class, or nothing in the layer speaks for it. `pixels` of the logits are labelled so."""

    map: np.ndarray
    pixels: int


class Explainer:
    """A network from N x 3 x H x W to logits N x classes x H x W made ready on one device; `network` itself
    stays as it is.

    `layer` is the dotted name of a module: of a network of the catalogue its entry's `evidence`, if there is
    no better one. Raises LayerError.
    """

    def __init__(self, network: nn.Module, layer: str, device: str = "cpu") -> None:
        copy = deepcopy(network)
        self.network = (copy.dilated() if isinstance(copy, SMP) else copy).eval().requires_grad_(False)
        self.layer = layer
        self.device = torch.device(device)
        compute_exactly(self.device)
        self.network.to(self.device)
        self._check_layer()

    def explain(self, image: np.ndarray, classes: Sequence[int]) -> list[Evidence]:
        """The evidence for each of `classes` (class ids) in an image, H x W x 3 uint8."""
        x = torch.from_numpy(image).to(self.device)[None]
        x = normalise(x, torch.float32, normalisation_of(self.network))
        with _features(self.network.get_submodule(self.layer)) as features:
            logits = self.network(x)
        labels = logits[0].argmax(0)
        return [self._evidence(features, logits[0, c], labels == c) for c in classes]

    def _evidence(self, features: list[Tensor], logits: Tensor, labelled: Tensor) -> Evidence:
        """logits, labelled: H x W of one class, and the pixels that have it."""
        y = logits[labelled].sum()
        gradients = torch.autograd.grad(y, features, retain_graph=True, materialize_grads=True)
        finest = max(a.shape[-2:] for a in features)
        total = torch.zeros(1, 1, *finest, device=self.device)
        with torch.no_grad():
            for a, gradient in zip(features, gradients, strict=True):
                weights = gradient.sum((-2, -1), keepdim=True)
                total += resize((weights * a).sum(1, keepdim=True), finest)
            cam = resize(F.relu(total), logits.shape)[0, 0]
            cam /= cam.max().clamp(min=torch.finfo(cam.dtype).tiny)
        return Evidence(cam.cpu().numpy(), int(labelled.sum()))

    def _check_layer(self) -> None:
        """Hold the layer against those that run on a small image. Raises LayerError."""
        with_features: set[str] = set()
        handles = [
            module.register_forward_hook(
                lambda _, inputs, output, name=name: with_features.add(name) if _maps(output) else None
            )
            for name, module in self.network.named_modules()
        ]
        with torch.no_grad():
            self.network(torch.zeros(1, 3, _PROBE, _PROBE, device=self.device))
        for handle in handles:
            handle.remove()
        if not self.layer or self.layer not in with_features:
            raise LayerError(
                f"no layer '{self.layer}' with features; there are"
                f" {', '.join(_parts(self.network, with_features))}, and those inside them"
            )


@contextmanager
def _features(layer: nn.Module) -> Iterator[list[Tensor]]:
    """All that the layer gives while the block runs. Gradients are recorded from there on."""
    features: list[Tensor] = []

    def record(module: nn.Module, inputs: object, output: object) -> None:
        for tensor in _maps(output):
            if not tensor.requires_grad:  # else it follows from an earlier run of the layer
                tensor.requires_grad_()
            features.append(tensor)

    handle = layer.register_forward_hook(record)
    try:
        yield features
    finally:
        handle.remove()


def _maps(output: object) -> list[Tensor]:
    """The features, N x C x h x w, that a module has returned."""
    tensors = output if isinstance(output, list | tuple) else [output]
    return [t for t in tensors if isinstance(t, Tensor) and t.ndim == 4]


def _parts(network: nn.Module, with_features: set[str]) -> list[str]:
    """Names worth choosing from: what consists of parts, and nothing inside a stage or a row of layers."""

    def holds(name: str) -> bool:
        """Whether what is inside is left out: but for the network's largest parts and lists of such."""
        listed = isinstance(network.get_submodule(name.rpartition(".")[0]), nn.ModuleList)
        row = isinstance(network.get_submodule(name), nn.Sequential)
        return row or ("." in name and not listed)

    names: list[str] = []
    for name, module in network.named_modules():
        around = {name[:i] for i, character in enumerate(name) if character == "."} & with_features
        if name and name in with_features and any(module.children()) and not any(map(holds, around)):
            names.append(name)
    return names
