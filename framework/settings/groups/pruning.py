"""Flags of pruning and of the scores."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

_prune = section("Pruning", dense=False, phase="pruning")
_step = section("Pruning", dense=False, phase="pruning", to="pruning")
_gates = section("Pruning", dense=False, phase="training", to="trainer")
_scores = section("Scores over the run", dense=False)
_tracking = section("Scores over the run", dense=False, needs="track_importance")
_criterion = section("Scores over the run", dense=False, to="criterion")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Settings of the pruning steps; those of single schedules are in `Schedules`."""

    l0_reg: float = _gates(0.1, "with --l0: cost of a nonzero weight, divided by the training samples", low=0)
    beta_ema: float = _gates(
        0.999, "with --l0: decay of the averaged weights used for testing; 0: off", low=0, below=1
    )
    pruning_limit: float = _prune(0.5, "target sparsity, as a share of --budget", low=0, below=1)
    snip_steps: int = _prune(
        5, "steps of the iterative criterions between the first and the last", low=0, most=10000
    )
    schedule: str | None = _prune(
        None,
        "when to prune; default: depends on the criterion",
        choices=("before", "during", "after", "rounds", "iterative"),
    )
    prune_delay: int | None = _prune(
        None, "during, after training: epochs before the first interval", low=0, to="during.delay"
    )
    prune_freq: int | None = _prune(None, "during training: epochs between pruning steps", low=1, to="during.freq")
    preserve_moment: bool = _scores(True, "keep the state of the optimizer when pruning, or reset it")
    track_importance: bool = _scores(False, "average the scores of the last batches before each pruning step")
    track_batches: int = _tracking(
        20, "with --track_importance: number of batches", low=1, most=10**6, to="tracking.batches"
    )
    alpha: float = _tracking(
        0.8, "with --track_importance: weight of the latest batch", above=0, high=1, to="tracking"
    )
    use_l2: bool = _criterion(False, "multiply the scores of weights by |w|")
    use_init: bool = _criterion(False, "multiply the scores of weights by |w - w0|, w0: initial value")
    T: float | None = _scores(
        None,
        "temperature of the logits in training and scoring; default: 1",
        above=0,
        to="criterion.temperature loop.temperature",
        dense=True,
    )
    grasp_T: float | None = _scores(
        None, "short for --set criterion.grasp_temperature=T", above=0, to="criterion.grasp_temperature"
    )
    imp_samples: int | None = _scores(
        None, "short for --set criterion.samples=N", low=1, most=10**7, to="criterion.samples"
    )
    budget: str | None = _step(
        None,
        "quantity that --pruning_limit refers to; default: nodes for channel criterions, else weights",
        choices=("nodes", "weights", "params", "macs", "latency"),
    )
    scope: str | None = _step(
        None,
        "scores that are ranked together; default: depends on the criterion",
        choices=("global", "layer", "row", "isomorphic"),
    )
    min_channels: int = _step(1, "channels to keep in each group; 0: residual blocks may be removed", low=0)
    keep_share: float = _step(0.0, "share of the dense channels to keep in each group", low=0, below=1)
    round_to: str = _step("1", "round kept channels to a multiple of N; auto: measure", metavar="N|auto")
    attention: str = _step(
        "dims", "unit of pruning in attention: channels of all heads, or heads", choices=("dims", "heads")
    )
    inexact: bool = _step(False, "also cut channels that a norm or softmax normalises over")
    fold: bool = _step(False, "move constant outputs of removed channels into following layers")
    masking: bool = _prune(True, "keep pruned weights at zero, or let them regrow")
    outer_layer_pruning: bool | None = _prune(
        None,
        "also prune weights of the first and last layer; channel criterions: also mask inputs",
        to="pruning.rank_inputs",
    )
    enable_rewinding: bool = _prune(False, "reset the weights to earlier ones after each pruning step", phase="")
    rewind_to: int = _prune(
        0,
        "with --enable_rewinding: epoch of these weights; 0: initial",
        low=0,
        needs="enable_rewinding",
        phase="",
    )
    protect: tuple[str, ...] = _step(
        (), "never prune modules with this name prefix; repeatable", metavar="PREFIX", study=True
    )
