"""One-call pruning for custom training scripts."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import explained, faulty_layers, in_channels_last
from secateur.framework.network.layers import check_network
from secateur.framework.network.lineage import Companion
from secateur.framework.network.masks import Masks
from secateur.framework.network.memory_format import fast_multiple
from secateur.framework.network.ordinary_tensors import check_dense, ordinary, ordinary_mode
from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import check_example
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.step import PruningStep, nothing_below, step_class
from secateur.framework.reporting.measure import measure
from secateur.framework.settings.groups.what import LIBRARY_CRITERION
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from secateur.utils.subsampled import subsample


@dataclass(frozen=True)
class PruneReport:
    """Result of a call of `prune`.

    Attributes:
        criterion: `repr` of the criterion that was used.
        budget: quantity that the sparsities are a share of: "nodes", "weights", "params", "macs" or "latency".
        asked: requested sparsity, in [0, 1).
        reached: sparsity of the pruned network relative to the dense one, measured in `budget`.
        before: result of `measure` before pruning.
        after: result of `measure` after pruning.
        protected: channel groups that are never cut, by name, each with the reason.
        events: one `PruneEvent` per pruning step, in order: the target, the reached sparsity, the scores, the kept
            channels or weights, and the number of removed entries.
        note: remarks on masks that must be re-applied and on thresholds that override the sparsity; "" if there
            are none.

    Example:
        >>> import torch
        >>> from secateur import PruneReport, prune
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> report = prune(model, "L1", 0.5, example_input=torch.randn(1, 4))
        >>> isinstance(report, PruneReport), report.budget, report.asked, report.reached
        (True, 'nodes', 0.5, 0.5)
        >>> report.before["params"], report.after["params"]
        (58, 30)
        >>> list(report.protected)  # the last layer
        ['2']
    """

    criterion: str
    budget: str
    asked: float
    reached: float
    before: dict[str, Any]
    after: dict[str, Any]
    protected: dict[str, str]
    events: tuple[PruneEvent, ...]
    note: str = ""


@ordinary_mode()
def prune(
    model: nn.Module,
    criterion: str | Criterion = LIBRARY_CRITERION,
    sparsity: float = 0.5,
    *,
    batches: Iterable[Batch] = (),
    example_input: Tensor | None = None,
    loss: LossFunction = nn.functional.cross_entropy,
    optimizer: Any = None,
    budget: str | None = None,
    scope: str | None = None,
    protect: Sequence[str] = (),
    companions: Sequence[Companion] = (),
    min_channels: int = 1,
    keep_share: float = 0.0,
    round_to: int | str = 1,
    attention: str = "dims",
    inexact: bool = False,
    fold: bool = False,
    seed: int = 0,
    latency: bool = False,
    safe_strides: bool = False,
) -> PruneReport:
    """Prune `model` in place.

    Channel criterions cut channels out of the parameters, the buffers and the optimizer's state; weight criterions
    mask weights with zeros. A criterion with several pruning steps runs all of them here and re-scores the
    remaining network before each step.

    On the CPU, PyTorch may corrupt memory in the backward pass of a strided 1x1 convolution with 2 to 7 input
    channels in channels_last (docs/known_upstream_faults.md), and pruning can produce such layers. A warning is
    issued if the pruned network contains one and is in channels_last: train it in contiguous format, or pass
    `safe_strides`.

    Args:
        model: network to prune; its parameters are replaced by smaller ones or masked.
        criterion: name of a criterion (`registry.names("criterions")`) or an instance of `Criterion`.
        sparsity: share of the dense network to prune, in [0, 1). 0 prunes nothing; any other value has no effect
            on a criterion with a fixed threshold, as the `note` of the report states.
        batches: pairs (inputs, targets) on the device of the model, which data-driven criterions score with.
        example_input: batch (N, ...) that the network is traced and measured with. Default: the inputs of the
            first of the `batches`.
        loss: function of (outputs, targets) that returns the mean loss of a batch.
        optimizer: optimizer of the model. Its state is cut with the parameters, and masks are re-applied after
            each of its steps. Without one, call `Masks(model).apply()` after each optimizer step.
        budget: quantity that `sparsity` is a share of, for channel criterions: "nodes" (channels of
            all groups), "weights", "params", "macs" or "latency" (measured forward pass of `example_input`).
            "nodes" is met as closely as the ranking allows, the others within 0.01 ("latency": 0.05). Default:
            "nodes" for channel criterions; weight criterions only support "weights".
        scope: set of scores that are ranked together. Channel criterions: "global" (all channels), "layer" (the
            same share of each group) or "isomorphic" (sets of groups with the same structure). Weight criterions:
            "global", "layer" or "row" (each output unit). Default: the scope of the criterion.
        protect: prefixes of module names that are never pruned.
        companions: mappings from parameter name to tensor, or modules of the same structure, that are cut in the
            same way as the model, such as an exponential moving average.
        min_channels: smallest number of channels to keep in each group; 0 allows residual blocks to be removed
            as a whole.
        keep_share: smallest share of the dense channels to keep in each group, in [0, 1).
        round_to: multiple that the widths of the pruned layers are rounded to; "auto" measures a fast multiple
            for the device.
        attention: unit of pruning in attention layers: "dims" (the same channels of every head) or "heads".
        inexact: also cut channels whose removal changes the output although they are zero, such as the input of
            a LayerNorm or a softmax; see `channel_groups`.
        fold: move the constant output of removed channels into the biases of the following layers; see `cut`.
        seed: seed of the random numbers drawn by the criterion. The global random state is restored afterwards.
        latency: also measure the latency before and after, in milliseconds; this takes a few seconds.
        safe_strides: convert strided 1x1 `nn.Conv2d` layers to their subclass `SubsampledConv2d`, which has the
            same parameters and outputs and avoids the fault described above.

    Returns:
        The `PruneReport`, with the reached sparsity and the measurements before and after. A target that cannot be
        reached also issues a warning.

    Raises:
        UsageError: if an argument has a wrong type or value, if the criterion or the network cannot be pruned, or
            if a budget other than "nodes" cannot be met. The model is not changed, except by the completed steps
            of a criterion that prunes in several.

    Example:
        >>> import torch
        >>> from secateur import build, prune
        >>> _ = torch.manual_seed(0)
        >>> model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
        >>> batches = [(torch.randn(8, 1, 28, 28), torch.arange(8))]
        >>> report = prune(model, "SNAP", 0.5, batches=batches)
        >>> round(report.reached, 2), report.after["params"] < report.before["params"]
        (0.5, True)
    """
    check_network(model)
    _check_types(sparsity, budget, scope, seed)
    chosen = build("criterions", criterion) if isinstance(criterion, str) else criterion
    if not isinstance(chosen, Criterion):
        raise UsageError(f"criterion must be a name or an instance of Criterion, got {criterion!r}")
    data = _pairs(batches)
    if not callable(loss):
        raise UsageError(f"loss must be a function of outputs and targets, got {loss!r}")
    example = _example(example_input, data)
    options = PruneOptions(
        scope=scope, protect=protect, budget=budget, min_channels=min_channels, keep_share=keep_share,
        round_to=_multiple(round_to, example), attention=attention, inexact=inexact, fold=fold,
    )  # fmt: skip
    step = step_class(chosen)(model, chosen, example, options, optimizer, companions)
    before = measure(model, example, latency=latency)
    events = _run(step, sparsity, data, loss, seed)
    reached = _reached(step, sparsity, events)
    if safe_strides:
        subsample(model)
    _warn_of_faults(model, example)
    return PruneReport(
        criterion=repr(chosen),
        budget=step.budget,
        asked=sparsity,
        reached=reached,
        before=before,
        after=measure(model, example, latency=latency),
        protected={name: group.protected for name, group in step.groups.items() if group.protected},
        events=events,
        note=_note(step, sparsity, reached),
    )


def _pairs(batches: Iterable[Batch]) -> list[Batch]:
    """Return the batches as a list; raise UsageError unless each is a pair of inputs and targets."""
    if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, str, Mapping)):
        raise UsageError(f"batches must be pairs (inputs, targets), got {type(batches).__name__}")
    data = list(batches)
    for number, batch in enumerate(data):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise UsageError(f"batches must be pairs (inputs, targets), batch {number} is {type(batch).__name__}")
        for part, values in zip(("inputs", "targets"), batch, strict=True):
            if isinstance(values, Tensor):
                check_dense(f"{part} of batch {number}", values)
        data[number] = (ordinary(batch[0]), ordinary(batch[1]))
    return data


def _example(example_input: Tensor | None, batches: Sequence[Batch]) -> Tensor:
    if example_input is None and not batches:
        raise UsageError("prune needs example_input or batches to trace the network")
    example = batches[0][0] if example_input is None else example_input
    check_example(example)
    return ordinary(example)


def _run(
    step: PruningStep, sparsity: float, batches: Sequence[Batch], loss: LossFunction, seed: int
) -> tuple[PruneEvent, ...]:
    """Run all steps of the criterion; the global random state is restored afterwards."""
    criterion = step.criterion
    criterion.seed, criterion.step = seed, 0
    with held_to_contract(criterion, "start", step.model):
        criterion.start(step.model)
    with random_numbers_as_before():
        torch.manual_seed(seed)
        targets = criterion.schedule.one_shot(sparsity)
        if len(targets) > 1:  # a single step refuses an unreachable target before it cuts anything
            step.check_reachable(targets[-1])
        return tuple(step(target, batches, loss, strict=target == targets[-1]) for target in targets)


def _reached(step: PruningStep, asked: float, events: Sequence[PruneEvent]) -> float:
    """Return the current sparsity; warn if the target was not reached or no score was below the threshold."""
    reached, free = step.sparsity(), step.criterion.threshold is None or asked == 0
    if events and asked > 0 and (warning := nothing_below(step.criterion, sum(event.removed for event in events))):
        warnings.warn(warning, stacklevel=4)
    if events and free and abs(reached - asked) > step.tolerance:
        name = step.criterion.name
        warnings.warn(f"{name}: asked for sparsity {asked:.4f}, reached {reached:.4f}", stacklevel=4)
    return reached


def _note(step: PruningStep, sparsity: float, reached: float) -> str:
    """Return remarks on a fixed threshold and on masks; the optimizer re-applies masks from now on."""
    notes, criterion, masks = [], step.criterion, Masks(step.model)
    if criterion.threshold is not None:
        override = f"regardless of the sparsity: asked for {sparsity:g}, reached {reached:.4f}"
        effect = override if sparsity > 0 else "but nothing at sparsity 0"
        notes.append(f"{criterion.name} prunes scores up to its threshold {criterion.threshold:g}, {effect}")
    if masks and step.optimizer is None:
        notes.append("masked, no optimizer given: call Masks(model).apply() after each of its steps")
    elif masks:
        masks.attach(unwrapped(step.optimizer))
        notes.append("masked: the masks are re-applied after each step of the optimizer")
    return "; ".join(notes)


def _warn_of_faults(model: nn.Module, example: Tensor) -> None:
    layers = faulty_layers(model)
    if layers and in_channels_last([example, *model.parameters()]):
        warnings.warn(f"{explained(layers)}: use contiguous format or safe_strides", stacklevel=3)


def _check_types(sparsity: Any, budget: Any, scope: Any, seed: Any) -> None:
    for name, value, kinds in (("sparsity", sparsity, (int, float)), ("seed", seed, (int,))):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UsageError(f"{name} must be a number, got {value!r}", argument=name)
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity} is outside [0, 1)", argument="sparsity")
    for name, value in (("budget", budget), ("scope", scope)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} must be a string, got {value!r}", argument=name)


def _multiple(round_to: int | str, example: Tensor) -> int:
    if round_to == "auto":
        return fast_multiple(example.device)
    if isinstance(round_to, int) and not isinstance(round_to, bool):
        return round_to
    raise UsageError(f"round_to must be a whole number or 'auto', got {round_to!r}")
