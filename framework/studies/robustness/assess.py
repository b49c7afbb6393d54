"""Run several attacks on one network."""

from collections.abc import Mapping, Sequence

import torch

from secateur.framework.settings.attacks import Attack
from secateur.framework.studies.robustness.attacking import Effort, run_attack
from secateur.framework.studies.robustness.points import PixelModel, Points, frozen, predictions
from secateur.framework.studies.robustness.results import Assessment, to_show
from secateur.framework.studies.robustness.sanity import check_masking
from secateur.framework.training.tester import Network
from secateur.utils.errors import RunError
from secateur.utils.progress import Track, no_bar

#: largest number of points whose adversarial images are stored for the figures of examples
KEPT = 64


def assess(
    network: Network,
    points: Points,
    attacks: Sequence[Attack],
    epsilons: Mapping[str, Sequence[float]],
    effort: Effort,
    *,
    seed: int,
    track: Track = no_bar,
) -> Assessment:
    """Attack `points` with each of `attacks` at the epsilons of its norm, and look for signs of masked gradients.

    Every attack starts from the same random state, so that its result does not depend on the other attacks. The
    network and its gradients are not changed.

    Args:
        network: The network and the normalisation of its inputs.
        points: Images and labels to attack.
        attacks: The attacks, in order.
        epsilons: Norm -> largest perturbations, ascending.
        effort: Steps, restarts and batch size.
        seed: Seed of each attack.
        track: Shows the progress.

    Raises:
        RunError: If the network has a single class.
    """
    with frozen(network.model):
        model = PixelModel(network.model, network.mean, network.std)
        with torch.no_grad():
            if model(points.pixels[:1]).shape[1] < 2:
                raise RunError(f"{network.name} has a single class and cannot be attacked")
        clean = predictions(model, points.pixels, effort.batch_size)
        right = clean == points.targets
        shown = to_show(clean, points.targets, KEPT)
        outcomes = []
        for attack in attacks:
            torch.manual_seed(seed)
            values = epsilons[attack.norm]
            outcomes.append(run_attack(attack, model, points, right, values, effort, show=shown, track=track))
        torch.manual_seed(seed)
        sanity = check_masking(model, points, right.cpu(), outcomes, effort, track)
    return Assessment(network.name, points, clean.cpu(), outcomes, sanity, shown)
