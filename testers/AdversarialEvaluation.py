from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from rich.table import Table
from torch import Tensor, nn

from secateur import Loss, Tester, UsageError
from secateur.framework.settings.attacks import DEFAULT, check_attack_options, chosen_attacks, chosen_epsilons
from secateur.framework.studies.robustness.assess import Assessment, assess, summary
from secateur.framework.studies.robustness.attacking import Effort, make_attack, settings_of
from secateur.framework.studies.robustness.points import PixelModel, balanced, collect
from secateur.framework.studies.robustness.tables import robustness_tables
from secateur.framework.training.tester import Network
from secateur.utils.limits import check_all, optional, whole


class AdversarialEvaluation(Tester):
    """Robust accuracy under attacks, in pixels of [0, 1]; every adversarial example is verified."""

    compares: ClassVar[bool] = True
    attacks: ClassVar[bool] = True

    def __init__(
        self, *, attack: str = DEFAULT, epsilons: Any = None, attack_samples: int | None = None,
        attack_steps: int | None = None, attack_binary_steps: int | None = None, attack_restarts: int = 1,
        attack_batch_size: int = 128, attack_options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Initialise the tester; raises UsageError for unknown names and values out of range.

        Args:
            attack: name of an attack in framework/settings/attacks.py, several separated by commas, or "all".
            epsilons: largest perturbations, see `chosen_epsilons`; None: defaults of each norm.
            attack_samples: number of samples in a class-balanced part of the test set; None: all samples.
            attack_steps: see `Effort`.
            attack_binary_steps: see `Effort`.
            attack_restarts: see `Effort`.
            attack_batch_size: number of images that are attacked together.
            attack_options: options of the class in foolbox, for a single attack.
        """
        counts = {
            "attack_samples": attack_samples, "attack_steps": attack_steps,
            "attack_binary_steps": attack_binary_steps, "attack_restarts": attack_restarts,
            "attack_batch_size": attack_batch_size,
        }  # fmt: skip
        check_all(counts, dict.fromkeys(counts, optional(whole(1))))
        super().__init__(attack=attack, epsilons=epsilons)
        self.attack_samples = attack_samples
        self._attacks = chosen_attacks(attack)
        self._epsilons = chosen_epsilons(epsilons, self._attacks)
        if attack_options is not None and (len(self._attacks) > 1 or not isinstance(attack_options, Mapping)):
            raise UsageError(
                "attack_options must be a mapping of options for a single attack, such as {stepsize: 0.02}"
            )
        check_attack_options(attack_options or {})
        self._effort = Effort(
            attack_steps, attack_binary_steps, attack_restarts, attack_batch_size, attack_options
        )
        if attack_options:
            make_attack(self._attacks[0], settings_of(self._attacks[0], self._effort))

    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Attack the network, and `context.compared` if given, on the same samples.

        Returns for each network: samples, misclassified, clean_accuracy, attacks (robust_accuracy per epsilon,
        interval, median_perturbation), worst_case per norm and sanity. Lists are in the order of the epsilons.
        """
        context = self.context
        points = collect(batches, context.mean, context.std)
        if self.attack_samples is not None:
            positions = balanced(points.targets, self.attack_samples, context.seed)
            points = points.at(positions)
        networks = context.networks(model)
        assessments = [
            assess(
                network, points, self._attacks, self._epsilons, self._effort, seed=context.seed,
                track=context.track,
            )
            for network in networks
        ]  # fmt: skip
        results = [{"network": assessment.name, **summary(assessment)} for assessment in assessments]
        if self.attack_samples is not None:
            results[0]["positions"] = positions.tolist()
        if len(results) > 1:
            results[0]["compared"] = results[1]
        self._draw(results[0], assessments[0], networks[0])
        return results[0]

    def _draw(self, results: dict[str, Any], assessment: Assessment, network: Network) -> None:
        context = self.context
        if context.plots is None:
            return
        from secateur.framework.studies.robustness.pictures import draw_examples, draw_robustness

        draw_robustness(context.plots / "robustness.png", results, f"{network.name} under attack")
        wrapped = PixelModel(network.model, network.mean, network.std)
        for outcome in assessment.outcomes:
            file = context.plots / f"examples_{outcome.attack.name}.png"
            title = f"{outcome.attack.name} on {network.name}"
            draw_examples(file, assessment, outcome, wrapped, context.class_names, title)

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """Return the tables of robust accuracy and the checks for masked gradients."""
        return robustness_tables(results)
