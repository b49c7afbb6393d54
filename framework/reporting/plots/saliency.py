"""Draw the gradient of the predicted class by the pixels of an image."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from secateur.framework.network.preserve import scoring
from secateur.framework.reporting.plots.gallery import class_label, image_rows

IMAGES = 8


def input_gradients(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the saliency |d output of the predicted class / d pixel| of a batch (arXiv:1312.6034).

    Evaluated in eval mode; the model, its gradients and its mode are restored.

    Args:
        model: A classifier.
        inputs: Images of shape (B, C, H, W).

    Returns:
        The saliency, its maximum over the channels, of shape (B, H, W), and the predicted classes of shape (B,).
    """
    with scoring(model):
        watched = inputs.detach().clone().requires_grad_(True)
        outputs = model(watched)
        predicted = outputs.argmax(dim=1)
        total = outputs.gather(1, predicted[:, None]).sum()
        (gradients,) = torch.autograd.grad(total, [watched])
    return gradients.abs().amax(dim=1), predicted


def draw_saliency(
    images: Tensor, gradients: Tensor, true: Tensor, predicted: Tensor, names: Sequence[str] | None, title: str
) -> Figure:
    """Draw images (B, C, H, W) in [0, 1] above their gradients (B, H, W), each scaled by its maximum."""
    largest = gradients.flatten(1).amax(dim=1)
    scaled = gradients / torch.where(largest > 0, largest, 1.0)[:, None, None]
    labels = [
        f"true {class_label(names, one)}\npred. {class_label(names, other)}"
        for one, other in zip(true.tolist(), predicted.tolist(), strict=True)
    ]
    sizes = [f"up to {size:.2g}" if size > 0 else "no gradient" for size in largest.tolist()]
    rows = {
        "image": list(zip(images, labels, strict=True)),
        "|d output / d input|": list(zip(scaled[:, None], sizes, strict=True)),
    }
    figure, grid = image_rows(rows, f"{title}: gradient of the predicted class by the pixels")
    for top, bottom, right in zip(*grid, (true == predicted).tolist(), strict=True):
        bottom.images[0].set_cmap("magma")
        if not right:
            top.title.set_color("#a33620")
    return figure
