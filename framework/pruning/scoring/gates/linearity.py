"""Detection of piecewise linear networks from the operations recorded by autograd."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

#: operations that are jointly linear or piecewise linear in all their inputs
_LINEAR = (
    "AccumulateGrad T Transpose Permute View UnsafeView ReshapeAlias Expand Unsqueeze Squeeze Slice "
    "Select Cat Stack Split SplitWithSizes UnsafeSplit Unbind Index IndexSelect Gather Clone Alias "
    "AsStrided ConstantPadNd Flip Roll ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D "
    "PixelShuffle PixelUnshuffle Repeat Unfold Copy CopySlices ToCopy Contiguous Detach Add Sub Rsub Neg "
    "Mean Sum AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D "
    "MkldnnAdaptiveAvgPool2D Relu LeakyRelu Hardtanh Threshold Clamp ClampMin ClampMax Abs Max Min Amax "
    "Amin Maximum Minimum MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D UpsampleNearest1D "
    "UpsampleNearest2D UpsampleBilinear2D NativeBatchNorm CudnnBatchNorm MiopenBatchNorm Where IndexCopy Gate "
    "Observed "
)
LINEAR = frozenset(_LINEAR.split())
#: bilinear operations -> indices of the two factors
FACTORS = dict.fromkeys(["Mul", "Mm", "Bmm", "Mv", "Dot", "Linear", "Convolution", "PreluKernel"], (0, 1))
FACTORS |= {"Addmm": (1, 2), "Baddbmm": (1, 2)}


def piecewise_linear(model: nn.Module, outputs: Iterable[Tensor]) -> bool:
    """Whether the outputs are piecewise linear in the tensors that required a gradient when they were computed.

    The parameters must not require gradients, and the network must be in eval mode. Unknown operations count as
    not piecewise linear.
    """
    if any(
        isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None
        for module in model.modules()
    ):
        return False
    return not any(map(_curved, operations(outputs)))


def operations(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Yield every operation of the graph that autograd recorded for the outputs."""
    seen: set[Any] = {None}
    pending: list[Any] = [output.grad_fn for output in outputs]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            pending += [function for function, _ in node.next_functions]


def _curved(node: Any) -> bool:
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    varies = [function is not None for function, _ in node.next_functions]
    if name == "Div":
        return any(varies[1:2])
    if name in FACTORS:
        return sum(any(varies[at : at + 1]) for at in FACTORS[name]) > 1
    return name not in LINEAR
