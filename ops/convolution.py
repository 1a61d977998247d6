"""A convolution with what follows it in inference: the sum with a shortcut, and ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]

# Below, oneDNN's own choice of weight layout is as good or better (measured by `fullres bench convolution`).
_PACK_FROM = 32


def compute_exactly(device: torch.device) -> None:
    """For this process: convolutions and products on CUDA give the same bytes each time, and fp32 is not
    TF32. Nothing to do on other devices."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class Convolution(nn.Module):
    """relu(conv(x) + shortcut), the last two where asked, in working precision. Inference only.

    On CPUs with oneDNN it is one pass over the output: the sum and ReLU happen in the convolution's
    registers, and the weights are laid out once for its kernels instead of at every call, which for small
    features costs as much as the convolution. In fp32 the result is that of the separate operations; in bf16
    the sum is rounded once instead of twice. Elsewhere the operations run one after the other.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias = (
            None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        )
        self.kernel_size, self.dilation, self.groups = conv.kernel_size, conv.dilation, conv.groups
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.relu = relu
        self._packed: Tensor | None = None

    def pack(self) -> "Convolution":
        """Lay the weights out for oneDNN, once they are on their device in their precision."""
        if (
            self.weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
            and (self.weight.dtype == torch.float32 or self._is_bf16_for_onednn())
        ):
            few = min(self.in_channels, self.out_channels) < _PACK_FROM or self.groups > 1
            self._packed = (
                self.weight
                if few
                else torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, [1, 1], [1, 1], self.dilation, 1, None
                )
            )
        return self

    def _is_bf16_for_onednn(self) -> bool:
        """In a precision that oneDNN has kernels for on AVX-512 and newer only."""
        return self.weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def unpack(self) -> None:
        """Back to separate operations, as before `pack`."""
        self._packed = None

    def forward(
        self, x: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0), shortcut: Tensor | None = None
    ) -> Tensor:
        """x: N x C x H x W. `shortcut`, of the output's shape, is overwritten."""
        if self._packed is None or x.numel() == 0:
            out = F.conv2d(x, self.weight, self.bias, stride, padding, self.dilation, self.groups)
            if shortcut is not None:
                out = shortcut.add_(out)
            return out.relu_() if self.relu else out
        x = x.contiguous(memory_format=torch.channels_last)
        attribute = "relu" if self.relu else "none"
        how = (self._packed, self.bias, padding, stride, self.dilation, self.groups)
        if shortcut is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *how, attribute, [], "")
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        unary = "relu" if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, x, *how, "add", 1.0, unary, [], "")
