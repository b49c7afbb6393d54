"""Measure the seconds of each attack on 256 images: `python -m benchmarks.attacks`.

The network is LeNet5 on FASHION_MINI, trained for two epochs or loaded from a checkpoint. The defaults of Secateur
are compared with those of foolbox for the correctly classified images; the latter are measured on few images and,
for the 9 times 10,000 steps of Carlini-Wagner, on few steps (without early stopping, which depends on the batch),
and extrapolated.
"""

import time
from pathlib import Path

import click
import torch
from torch import nn

from benchmarks.timing import Row, head, record, show
from secateur import build, load_model
from secateur.framework.network.preserve import preserved_state
from secateur.framework.settings.attacks import ATTACKS, EPSILONS
from secateur.framework.studies.robustness.attacking import Effort, make_attack, run_attack
from secateur.framework.studies.robustness.points import PixelModel, Points, balanced, collect, predictions
from secateur.utils.loading.loaders import Loaders, make_loaders

SEED, IMAGES, TARGET = 333, 256, 120.0
#: default number of steps of Carlini-Wagner, and of measured steps
FULL, MEASURED = 9 * 10_000, 20


def trained(loaders: Loaders, epochs: int) -> nn.Module:
    """Return a LeNet5 after a few epochs of Adam."""
    torch.manual_seed(SEED)
    model: nn.Module = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for inputs, targets in loaders.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model


def ours(name: str, model: PixelModel, points: Points, right: torch.Tensor) -> tuple[float, float, float]:
    """Measure seconds and processor seconds of Secateur's defaults, and robust accuracy at the middle epsilon."""
    attack = ATTACKS[name]
    torch.manual_seed(SEED)
    start, processor = time.perf_counter(), time.process_time()
    outcome = run_attack(attack, model, points, right, EPSILONS[attack.norm], Effort())
    seconds = time.perf_counter() - start
    return (
        seconds,
        time.process_time() - processor,
        1 - float(outcome.broken[len(outcome.epsilons) // 2].double().mean()),
    )


def theirs(name: str, model: PixelModel, points: Points) -> float:
    """Measure the seconds of foolbox's defaults per image, over all epsilons at once."""
    import foolbox

    attack, scale = ATTACKS[name], 1.0
    options = {"steps": MEASURED, "binary_search_steps": 1, "abort_early": False} if "Carlini" in name else {}
    made = make_attack(attack, options)
    if options:
        scale = FULL / MEASURED
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=points.pixels.device)
    epsilons = None if attack.minimal else EPSILONS[attack.norm]
    start = time.perf_counter()
    made(wrapped, points.pixels, points.targets, epsilons=epsilons)
    return scale * (time.perf_counter() - start) / len(points)


@click.command()
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), help="A LeNet5 for FASHION_MINI.")
@click.option("--images", default=IMAGES, show_default=True, help="Images to attack.")
@click.option("--sample", default=16, show_default=True, help="Images for foolbox's defaults.")
@click.option("--epochs", default=2, show_default=True, help="Epochs of training before the attacks.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(checkpoint: Path | None, images: int, sample: int, epochs: int, file: Path | None) -> None:
    """Print the seconds of every attack."""
    torch.set_flush_denormal(True)
    head()
    loaders = make_loaders(build("datasets", "FASHION_MINI"), batch_size=128, seed=SEED)
    network = load_model(checkpoint) if checkpoint is not None else trained(loaders, epochs)
    network.eval()
    points = collect(loaders.test, loaders.mean, loaders.std)
    points = points.at(balanced(points.targets, images, SEED))
    rows, whole = [], []
    with preserved_state(network):
        network.requires_grad_(False)
        model = PixelModel(network, loaders.mean, loaders.std)
        right = predictions(model, points.pixels, 128) == points.targets
        few = points.at(right.nonzero().flatten()[:sample])
        for name in ATTACKS:
            seconds, processor, robust = ours(name, model, points, right)
            note = f"{processor:.1f} s of processor, robust accuracy {robust:.3f} at the middle epsilon"
            rows.append(Row(name, seconds, target=TARGET, note=note))
            total = theirs(name, model, few) * int(right.sum())
            whole.append(Row(name, total, note=f"{total / max(seconds, 1e-9):.1f} times Secateur"))
    show(f"Seconds for {images} images, our defaults, all epsilons", rows, ("seconds", ""))
    show("Seconds with foolbox's defaults, extrapolated", whole, ("seconds", ""))
    record(file, {"ours": rows, "theirs": whole})


if __name__ == "__main__":
    main()
