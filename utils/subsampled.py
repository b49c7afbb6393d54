"""Strided 1x1 convolutions that subsample their input and then convolve with stride 1.

They compute the outputs of `nn.Conv2d` from 1 / stride^2 of the pixels, without the kernels for strided 1x1
convolutions, one of which writes outside its memory (docs/known_upstream_faults.md).
"""

from collections.abc import Sequence

from torch import Tensor, nn


def is_strided_pointwise(layer: nn.Conv2d) -> bool:
    """Return whether the kernel is 1x1 and the stride is above 1 in some dimension."""
    return set(layer.kernel_size) == {1} and max(layer.stride) > 1


def subsampled(images: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], groups: int) -> Tensor:
    """Convolve padded `images` (..., channels, height, width) with a 1x1 kernel and a stride."""
    rows, columns = stride
    return nn.functional.conv2d(images[..., ::rows, ::columns], weight, bias, groups=groups)


class SubsampledConv2d(nn.Conv2d):
    """A `nn.Conv2d` that subsamples its input before the convolution if it is a strided 1x1 convolution.

    Arguments, attributes (including `stride`), parameters and results are those of `nn.Conv2d`, which computes all
    other kernels and strides. `layer.__class__ = SubsampledConv2d` converts a layer in place.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_strided_pointwise(self):
            return super()._conv_forward(input, weight, bias)
        pads = self._reversed_padding_repeated_twice
        if any(pads):
            input = nn.functional.pad(
                input, pads, "constant" if self.padding_mode == "zeros" else self.padding_mode
            )
        return subsampled(input, weight, bias, self.stride, self.groups)


def subsample(model: nn.Module) -> list[str]:
    """Convert every strided 1x1 `nn.Conv2d` (not subclasses) of the model in place; return their names."""
    layers = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Conv2d}
    chosen = [name for name, layer in layers.items() if is_strided_pointwise(layer)]
    for name in chosen:
        layers[name].__class__ = SubsampledConv2d
    return chosen
