"""Draw robust accuracy over epsilon, examples of adversarial images, and accuracy under corruptions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.framework.reporting.plots.gallery import (
    GONE,
    LEFT,
    class_label,
    image_rows,
    label_axes,
    margins,
    new_figure,
    save_figure,
    show_image,
)
from secateur.framework.settings.attacks import NORMS
from secateur.framework.studies.robustness.assess import Assessment, networks_of
from secateur.framework.studies.robustness.attacking import Outcome
from secateur.framework.studies.robustness.points import PixelModel
from secateur.framework.studies.robustness.tables import shown_epsilon

#: largest number of images in a figure of examples
SHOWN = 8
WORST = "#20262c"
STYLES = ((LEFT, "o"), ("#3b6fb6", "s"), ("#d98a1f", "^"), ("#8e5ea2", "D"), ("#5c9ead", "v"))


def draw_robustness(file: Path, results: dict[str, Any], title: str) -> None:
    """Draw robust accuracy over epsilon, a panel for each norm, with the interval of the worst case."""
    norms = [norm for norm in NORMS if norm in results["worst_case"]]
    # below each panel, which curves can fill, is its legend
    lines = 2 + max(len(results["worst_case"][norm]["attacks"]) for norm in norms)
    below = 0.55 + 0.16 * lines
    figure = new_figure(max(5.5, 4.3 * len(norms)), 3.9 + below, title)
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    for axes, norm in zip(panels, norms, strict=True):
        _panel(axes, norm, results)
    panels[0].set_ylabel("robust accuracy", fontsize=9)
    margins(figure, 0.7, 0.2, 0.45, below, wspace=0.06)
    save_figure(figure, file)


def _panel(axes: Any, norm: str, results: dict[str, Any]) -> None:
    worst = results["worst_case"][norm]
    for (colour, marker), name in zip(STYLES, worst["attacks"], strict=False):
        attack = results["attacks"][name]
        axes.plot([0, *attack["epsilons"]], [results["clean_accuracy"], *attack["robust_accuracy"]], color=colour,
                  marker=marker, markersize=4, linewidth=1, label=name)  # fmt: skip
    names = ("worst case", "worst case, compared network")
    for network, colour, name in zip(networks_of(results), (WORST, GONE), names, strict=False):
        curve = network["worst_case"][norm]
        x = [0, *curve["epsilons"]]
        _with_interval(axes, network, x, curve, "robust_accuracy", color=colour, label=name, linestyle="--")
    ticks = curve_ticks(worst["epsilons"])
    axes.set_xticks([0, *ticks], ["0", *(shown_epsilon(norm, tick) for tick in ticks)], fontsize=7)
    axes.set_xlabel(f"largest perturbation in {norm} (pixels in [0, 1])", fontsize=8)
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _with_interval(
    axes: Any, network: Mapping[str, Any], x: Sequence[float], curve: Mapping[str, Any], key: str, **style: Any
) -> None:
    """Draw a curve of accuracies with their intervals, beginning with that on the unchanged images."""
    axes.plot(x, [network["clean_accuracy"], *curve[key]], linewidth=2, **style)
    low, high = zip(network["clean_interval"], *curve["interval"], strict=True)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.12)
    axes.set_ylim(-0.02, 1.02)
    label_axes(axes)


def curve_ticks(epsilons: Sequence[float]) -> list[float]:
    """Select the epsilons whose labels do not overlap on a linear axis."""
    kept: list[float] = []
    for epsilon in reversed(epsilons):
        if not kept or kept[-1] - epsilon > 0.09 * epsilons[-1]:
            kept.append(epsilon)
    return [epsilon for epsilon in reversed(kept) if epsilon > 0.06 * epsilons[-1]]


@torch.no_grad()
def draw_examples(
    file: Path,
    assessment: Assessment,
    outcome: Outcome,
    model: PixelModel,
    names: Sequence[str] | None,
    title: str,
) -> None:
    """Draw images, perturbations and adversarial images in columns, with the predicted classes.

    Perturbations are scaled to the full range, with grey for zero; the title contains their size. Draws nothing if
    there are no adversarial images.
    """
    # no new attack: these images were counted in the results
    shown = [at for at in assessment.shown if at in outcome.adversarials][:SHOWN]
    if not shown:
        return
    images = assessment.points.pixels[shown].cpu()
    broken = torch.stack([outcome.adversarials[at] for at in shown])
    device = next(model.parameters(), broken).device
    taken = model(broken.to(device)).argmax(dim=1).cpu().tolist()
    clean = assessment.clean[shown].tolist()
    perturbations = (broken - images).float()
    largest = perturbations.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    norm = outcome.attack.norm
    sizes = [f"{norm} {shown_epsilon(norm, float(outcome.distance[at]))}" for at in shown]
    rows = {
        "image": zip(images, [class_label(names, label) for label in clean], strict=True),
        "perturbation": zip(0.5 + 0.5 * perturbations / largest, sizes, strict=True),
        "adversarial": zip(broken, [class_label(names, label) for label in taken], strict=True),
    }
    figure, _ = image_rows({label: list(row) for label, row in rows.items()}, title)
    save_figure(figure, file)


def draw_corruptions(file: Path, results: dict[str, Any], spoiled: Mapping[str, Sequence[Tensor]]) -> None:
    """Draw accuracy over strength, a panel for each corruption, above one image at every strength."""
    names = list(results["corruptions"])
    figure = new_figure(4.2 * len(names), 4.6, f"{results['network']}: accuracy on corrupted images")
    grid = figure.add_gridspec(2, len(names), height_ratios=(3, 1))
    for column, name in enumerate(names):
        axes = figure.add_subplot(grid[0, column])
        titles = (results["network"], "compared network")
        for network, colour, label in zip(networks_of(results), (LEFT, GONE), titles, strict=False):
            row = network["corruptions"][name]
            x = range(len(row["accuracy"]) + 1)
            _with_interval(axes, network, x, row, "accuracy", color=colour, label=label, marker="o")
        strengths = [f"{strength:g}" for strength in results["corruptions"][name]["strengths"]]
        axes.set_xticks(range(len(strengths) + 1), ["clean", *strengths], fontsize=8)
        axes.set_title(name, fontsize=9)
        if column == 0:
            axes.set_ylabel("accuracy", fontsize=9)
            axes.legend(frameon=False, fontsize=7, loc="lower left")
        inner = grid[1, column].subgridspec(1, len(strengths), wspace=0.1)
        for at, image in enumerate(spoiled[name]):
            show_image(figure.add_subplot(inner[0, at]), image, strengths[at])
    margins(figure, 0.6, 0.15, 0.7, 0.1, wspace=0.14, hspace=0.22)
    save_figure(figure, file)
