"""Flags that only one schedule reads."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

_rounds = section("Pruning in rounds (--schedule rounds)", dense=False, phase="pruning", to="rounds")
_steps = section("Pruning every few batches (--schedule iterative)", dense=False, phase="pruning", to="iterative")


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Options of the schedules `Rounds` and `Iterative`; None: the value of the criterion's schedule."""

    n_rounds: int | None = _rounds(None, "rounds of one epoch and one pruning step; default: 5", low=1)
    thresholds: tuple[float, ...] = _rounds(
        (), "sparsity after each round, ascending: 0.3,0.5; percent if any is above 1", low=0, metavar="S,S,..."
    )
    warmup_epochs: int | None = _rounds(
        None, "epochs before the first pruning step, including round 1; default: 0", low=0, to="rounds.warmup"
    )
    lr_prune: float | None = _rounds(
        None,
        "learning rate during the rounds; default: --learning_rate",
        low=0,
        needs=("schedule", ("rounds",)),
        to="",
    )
    frequency: int | None = _steps(None, "batches between steps; default: 30, or fewer in short runs", low=1)
    prune_per_iteration: int | None = _steps(
        None,
        "channels or weights to prune per step; default: derived from --pruning_limit",
        low=0,
        to="iterative.per_step",
    )
    maximum_pruning_iterations: int | None = _steps(None, "total number of steps", low=1, to="iterative.maximum")
    prune_neurons_max: int | None = _steps(
        None, "total number of channels or weights to prune; -1: no limit", low=-1, to="iterative.most", none=-1
    )
    start_pruning_after_n_iterations: int | None = _steps(
        None,
        "first step that prunes; earlier ones only update the scores; default: the first",
        low=0,
        to="iterative.start",
    )
    pruning_momentum: float | None = _steps(
        None, "momentum of the scores over the steps; default: 0.9", low=0, below=1, to="iterative.momentum"
    )
    group_size: int | None = _steps(None, "channels of a layer pruned together; default: 1", low=1)
    l2_normalization_per_layer: bool | None = _steps(
        None, "divide the scores of each layer by their L2 norm", to="iterative.l2_per_layer"
    )
    pruning_threshold: float | None = _steps(
        None,
        "skip a step while the mean training loss since the last one is above",
        low=0,
        to="iterative.loss_limit",
    )
    fixed_criteria: bool | None = _steps(None, "keep the scores of the first pruning step")
    fixed_layer: int | None = _steps(None, "prune only the layer of this index (from 0); -1: all", low=-1, none=-1)
    flops_regularization: float | None = _steps(
        None, "subtract this from a channel's score per saved multiply-add", low=0, to="iterative.flops"
    )
