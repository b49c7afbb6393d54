"""Draw the gradient of the predicted class by the pixels of an image."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from secateur.framework.network.preserve import scoring
from secateur.framework.reporting.plots.gallery import class_label, margins, new_figure, show_image

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
    count = len(images)
    figure = new_figure(1.35 * count + 0.5, 3.9, f"{title}: gradient of the predicted class by the pixels")
    rows = figure.subplots(2, count, squeeze=False)
    for place in range(count):
        top, bottom = rows[0][place], rows[1][place]
        words = [class_label(names, int(number)) for number in (true[place], predicted[place])]
        show_image(top, images[place], f"true {words[0]}\npred. {words[1]}")
        if int(true[place]) != int(predicted[place]):
            top.title.set_color("#a33620")
        largest = float(gradients[place].max())
        shown = gradients[place] / largest if largest > 0 else gradients[place]
        show_image(bottom, shown[None], f"up to {largest:.2g}" if largest > 0 else "no gradient", cmap="magma")
    rows[0][0].set_ylabel("image", fontsize=8)
    rows[1][0].set_ylabel("|d output / d input|", fontsize=8)
    margins(figure, 0.4, 0.1, 0.8, 0.1, wspace=0.08, hspace=0.18)
    return figure
