"""Draw robust accuracy over epsilon, examples of adversarial images, and accuracy under corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from secateur.framework.settings.attacks import NORMS
from secateur.framework.studies.robustness.assess import KEPT, SHOWN
from secateur.framework.studies.robustness.attacking import Outcome
from secateur.framework.studies.robustness.points import PixelModel
from secateur.framework.studies.robustness.results import Assessment, to_show
from secateur.framework.studies.robustness.tables import shown_epsilon

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

WORST, COMPARED = "#20262c", "#c8553d"
STYLES = (("#1b7f5c", "o"), ("#3b6fb6", "s"), ("#d98a1f", "^"), ("#8e5ea2", "D"), ("#5c9ead", "v"))


def draw_robustness(file: Path, results: dict[str, Any], title: str) -> Path:
    """Draw robust accuracy over epsilon, a panel for each norm, with the interval of the worst case."""
    norms = [norm for norm in NORMS if norm in results["worst_case"]]
    size = (max(5.5, 4.3 * len(norms)), 5.2)
    figure, panels = plt.subplots(1, len(norms), figsize=size, sharey=True, squeeze=False)
    for axes, norm in zip(panels[0], norms, strict=True):
        _panel(axes, norm, results)
    panels[0][0].set_ylabel("robust accuracy")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file


def _panel(axes: Any, norm: str, results: dict[str, Any]) -> None:
    worst = results["worst_case"][norm]
    clean = results["clean_accuracy"]
    names = worst["attacks"]
    for (colour, marker), name in zip(STYLES, names, strict=False):
        attack = results["attacks"][name]
        axes.plot([0, *attack["epsilons"]], [clean, *attack["robust_accuracy"]], color=colour, marker=marker,
                  markersize=4, linewidth=1, label=name)  # fmt: skip
    for network, colour, label in (
        (results, WORST, "worst case"),
        (results.get("compared"), COMPARED, "worst case, compared network"),
    ):
        if network is None:
            continue
        curve = network["worst_case"][norm]
        x, y = [0, *curve["epsilons"]], [network["clean_accuracy"], *curve["robust_accuracy"]]
        bounds = [network["clean_interval"], *curve["interval"]]
        axes.plot(x, y, color=colour, linewidth=2, linestyle="--", label=label)
        axes.fill_between(x, [low for low, _ in bounds], [high for _, high in bounds], color=colour, alpha=0.12)
    ticks = curve_ticks(worst["epsilons"])
    axes.set_xticks([0, *ticks], ["0", *(shown_epsilon(norm, tick) for tick in ticks)], fontsize=7)
    axes.set_xlabel(f"largest perturbation in {norm} (pixels in [0, 1])", fontsize=8)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    # below the panel, which curves can fill
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13))


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
) -> Path | None:
    """Draw images, perturbations and adversarial images in columns, with the predicted classes.

    Perturbations are scaled to the full range, with grey for zero; the title contains their size. Returns the
    file, or None if there are no adversarial images.
    """
    # no new attack: these images were counted in the results
    order = to_show(assessment.clean, assessment.points.targets, KEPT)
    shown = [at for at in order if at in outcome.adversarials][:SHOWN]
    if not shown:
        return None
    images = assessment.points.pixels[shown]
    broken = torch.stack([outcome.adversarials[at] for at in shown])
    device = next(model.parameters(), broken).device
    taken = model(broken.to(device)).argmax(dim=1).cpu().tolist()
    clean = assessment.clean[shown].tolist()
    figure, panels = plt.subplots(3, len(shown), figsize=(1.35 * max(4, len(shown)) + 0.4, 5.2), squeeze=False)
    for column, at in enumerate(shown):
        perturbation = (broken[column] - images[column]).float()
        largest = max(float(perturbation.abs().max()), 1e-12)
        _image(panels[0][column], images[column], _name(names, clean[column]))
        size = shown_epsilon(outcome.attack.norm, float(outcome.distance[at]))
        _image(panels[1][column], 0.5 + 0.5 * perturbation / largest, f"{outcome.attack.norm} {size}")
        _image(panels[2][column], broken[column], _name(names, taken[column]))
    for row, label in enumerate(("image", "perturbation", "adversarial")):
        panels[row][0].set_ylabel(label, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file


def _image(axes: Any, image: Tensor, title: str) -> None:
    channels = image.float().clamp(0, 1)
    if len(channels) == 3:
        axes.imshow(channels.permute(1, 2, 0).numpy(), vmin=0, vmax=1)
    else:
        axes.imshow(channels[0].numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def _name(names: Sequence[str] | None, label: int) -> str:
    return str(names[label])[:14] if names is not None and 0 <= label < len(names) else f"class {label}"


def draw_corruptions(file: Path, results: dict[str, Any], spoiled: Mapping[str, Sequence[Tensor]]) -> Path:
    """Draw accuracy over strength, a panel for each corruption, above one image at every strength."""
    names = list(results["corruptions"])
    figure = plt.figure(figsize=(4.2 * len(names), 4.6))
    grid = figure.add_gridspec(2, len(names), height_ratios=(3, 1))
    for column, name in enumerate(names):
        axes = figure.add_subplot(grid[0, column])
        for network, colour, label in (
            (results, STYLES[0][0], results["network"]),
            (results.get("compared"), COMPARED, "compared network"),
        ):
            if network is None:
                continue
            row = network["corruptions"][name]
            x, y = range(len(row["accuracy"]) + 1), [network["clean_accuracy"], *row["accuracy"]]
            bounds = [network["clean_interval"], *row["interval"]]
            axes.plot(x, y, color=colour, marker="o", markersize=4, label=label)
            axes.fill_between(
                x, [low for low, _ in bounds], [high for _, high in bounds], color=colour, alpha=0.12
            )
        strengths = results["corruptions"][name]["strengths"]
        axes.set_xticks(
            range(len(strengths) + 1), ["clean", *(f"{strength:g}" for strength in strengths)], fontsize=8
        )
        axes.set_title(name, fontsize=10)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        if column == 0:
            axes.set_ylabel("accuracy")
            axes.legend(frameon=False, fontsize=7, loc="lower left")
        inner = grid[1, column].subgridspec(1, len(strengths), wspace=0.1)
        for at, image in enumerate(spoiled[name]):
            _image(figure.add_subplot(inner[0, at]), image, f"{strengths[at]:g}")
    figure.suptitle(f"{results['network']}: accuracy on corrupted images", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file
