"""One pruning step: score, check, choose, remove."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.lineage import Companion
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores, check_scores
from secateur.framework.pruning.selection.channel_ranking import INPUTS
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Keep
from secateur.framework.pruning.selection.targets import Request, target_class
from secateur.framework.training.events import PruneEvent
from secateur.utils.optimizers import unwrapped


class PruningStep:
    """Score and prune one network in one or more steps.

    Args:
        model: The network.
        criterion: The criterion; its granularity determines the `target`.
        example_input: One input batch, for tracing and for measured budgets.
        options: What may be pruned, and how.
        optimizer: Optimizer whose state is cut together with the network.
        companions: Further tensors by parameter name that are cut together with the network.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        example_input: Tensor,
        options: PruneOptions | None = None,
        optimizer: Any = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        options = options or PruneOptions()
        target = target_class(criterion)
        target.check(criterion, options)
        self.model, self.criterion = model, criterion
        criterion.example_input = example_input[:1]
        with held_to_contract(criterion, "check", model):
            criterion.check(model)
        if optimizer is not None:
            unwrapped(optimizer)  # raises now instead of after a change of the model
        self.target = target(model, criterion, example_input, options)
        self.optimizer, self.companions = optimizer, companions

    @property
    def groups(self) -> Groups:
        """The present channel groups."""
        return self.target.groups

    def score(self, batches: Iterable[Batch], loss: LossFunction) -> Scores:
        """Return the criterion's scores of the present network, unchecked."""
        with held_to_contract(self.criterion, "score", self.model):
            return self.criterion.score(self.model, batches, loss, self.target.scored(self.groups))

    def check(self, scores: Scores) -> dict[str, Tensor]:
        """Return the scores as float32; raise UsageError if they break the contract."""
        return check_scores(scores, self.model, self.groups, self.criterion)

    def __call__(
        self,
        request: float | Request,
        batches: Iterable[Batch],
        loss: LossFunction,
        strict: bool = True,
        scores: Scores | None = None,
    ) -> PruneEvent:
        """Prune to a share of the dense network, or as a `Request` says, as near to it as possible.

        With `strict`, raises UsageError without pruning if a budget other than nodes cannot be met. `scores`
        replace those of the criterion.
        """
        batches = list(batches)
        checked = self.check(self.score(batches, loss) if scores is None else scores)
        ranked = checked | self.target.input_scores(batches, loss)
        request = request if isinstance(request, Request) else Request(share=request)
        chosen, decisive = self.target.choose(ranked, request, strict)
        removed, kept_indices = self.target.remove(chosen, self.optimizer, self.companions)
        self.criterion.step += 1
        keep = Keep({name: mask for name, mask in chosen.items() if name != INPUTS})
        return PruneEvent(
            decisive.share, self.target.sparsity(), keep, checked, removed, chosen.get(INPUTS),
            number=decisive.units, kept_indices=kept_indices,
        )  # fmt: skip


def nothing_below(criterion: Criterion, removed: int) -> str | None:
    """Return the warning for a fixed threshold that has pruned nothing; None if there is no reason for it."""
    if criterion.threshold is None or removed:
        return None
    remedy = "longer training, a stronger penalty in the loss or a higher threshold"
    limit = f"no score is below the threshold {criterion.threshold:g}"
    return f"{criterion.name}: nothing was pruned, {limit}: try {remedy}"
