"""Every setting of a run: one typed field per flag of the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from secateur.framework.settings.field import Flag, flag, flags_of
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

# The kind of plug-in that each field names.
KINDS = {
    "model": "models",
    "prune_criterion": "criterions",
    "loss": "losses",
    "optimizer": "optimizers",
    "train_scheme": "trainers",
    "test_scheme": "testers",
    "data_set": "datasets",
}
# The field that names the plug-in of a group of `--set GROUP.KEY=VALUE`.
GROUPS = {
    "model": "model",
    "loss": "loss",
    "optimizer": "optimizer",
    "criterion": "prune_criterion",
    "trainer": "train_scheme",
    "tester": "test_scheme",
    "dataset": "data_set",
}
# Flags that are short for --set tester.FLAG=VALUE.
TESTER_FLAGS = (
    "attack", "epsilons", "attack_samples", "attack_steps", "attack_binary_steps", "attack_restarts",
    "attack_batch_size",
)  # fmt: skip
# Flags that add results to the evaluation of a checkpoint.
EXTRAS = ("train_acc", "test_acc", "flops", "compression")
# Flags that are short for `--set model.NAME=VALUE`.
SHORT = ("arch", "hidden_dim")
# Flags that are short for `--set criterion.NAME=VALUE`, and the options' names.
CRITERION_FLAGS = {
    "T": "temperature", "grasp_T": "grasp_temperature", "imp_samples": "samples", "use_l2": "use_l2",
    "use_init": "use_init",
}  # fmt: skip
NameSet = set[str]  # inside the class the name `set` is a field

_what = partial(flag, group="What to run")
_train = partial(flag, group="Training")
_prune = partial(flag, group="Pruning")
_rounds = partial(flag, group="Pruning in rounds (--schedule rounds)")
_steps = partial(flag, group="Pruning every few batches (--schedule iterative)")
_scores = partial(flag, group="Scores over the run")
_data = partial(flag, group="Data")
_picture = partial(flag, group="Pictures")
_test = partial(flag, group="Testing, with --eval")
_folder = partial(flag, group="Run folder and checkpoints")
_machine = partial(flag, group="Machine")
_extend = partial(flag, group="Plug-ins and configuration")


@dataclass
class RunConfig:
    """The settings of one run, with the defaults of the command line.

    `given`: names of the fields that a flag or a config file set, which autoconfig does not change.
    `from_flags`: names of the fields that a flag set.
    `notes`: automatic decisions, one line each, for the log.
    """

    model: str = _what("LeNet5", help="network to prune; see `list models`", metavar="NAME")
    arch: str | None = _what(
        None, help="network of torchvision, for --model TorchvisionModel; default: resnet18", metavar="NAME"
    )
    prune_criterion: str = _what(
        "SNAPit", help="pruning criterion; EmptyCrit: none; see `list criterions`", metavar="NAME"
    )
    data_set: str = _what("FASHION_MINI", help="data set to train on; see `list data_sets`", metavar="NAME")
    loss: str = _what("CrossEntropy", help="loss", metavar="NAME")
    optimizer: str = _what("ADAM", help="optimizer", metavar="NAME")
    train_scheme: str = _what("DefaultTrainer", help="trainer", metavar="NAME")
    test_scheme: str = _what("Accuracy", help="tester", metavar="NAME")
    eval: bool = _what(False, help="only evaluate a checkpoint")
    hoyer_square: bool = _what(False, help="use loss and criterion HoyerSquare")
    group_hoyer_square: bool = _what(False, help="use loss and criterion GroupHoyerSquare")
    train_dense: bool = _what(False, help="also train the dense network for comparison")
    tuning: bool = _what(False, help="test on a held-out 20 % of the training set instead of the test set")

    epochs: int = _train(10, help="number of passes over the training set", low=0, most=10**6)
    batch_size: int = _train(128, help="samples per step", low=1, most=10**6)
    seed: int = _train(333, help="seed of all random numbers", low=0, high=2**32 - 1)
    learning_rate: float = _train(2e-3, help="learning rate", low=0)
    momentum: float = _train(0.9, help="momentum of SGD", low=0, below=1)
    l2_reg: float = _train(5e-5, help="weight decay of weights; none for biases and norm layers", low=0)
    l1_reg: float = _train(0.0, help="weight of the L1 norm in the loss", low=0)
    lp_reg: float = _train(0.0, help="weight of sum |w|^0.2 in the loss", low=0)
    hoyer_reg: float | None = _train(
        None, help="weight of the Hoyer measure in the loss; default: see the loss", low=0
    )
    label_smoothing: float = _train(0.0, help="label smoothing of the loss", low=0, high=1)
    grad_clip: float = _train(10.0, help="clip the gradient to this L2 norm; 0 or less: off")
    grad_noise: float = _train(0.0, help="standard deviation of Gaussian noise added to gradients", low=0)
    lr_schedule: str = _train(
        "none", help="learning rate schedule", choices=("none", "step", "multistep", "cosine")
    )
    lr_step: int = _train(30, help="for step: epochs between decays", low=1)
    lr_milestones: tuple[int, ...] = _train(
        (), help="for multistep: epochs of the decays, such as 30,60,80", low=1, metavar="N,N,..."
    )
    lr_gamma: float = _train(0.1, help="for step and multistep: factor of each decay", low=0)
    group_wd_coeff: float = _train(
        0.0, help="reduce the L2 norm of each convolution filter by this in each step; 0: off", low=0
    )
    track_stats: bool = _train(False, help="also test after every epoch and report all accuracies")
    max_training_minutes: float = _train(0.0, help="stop training after this many minutes; 0 or less: off")
    eval_freq: int = _train(0, help="also validate every N batches; 0: only after each epoch", low=0)
    save_freq: int = _train(0, help="also save a checkpoint every N epochs; 0: off", low=0)

    l0: bool = _prune(False, help="train hard-concrete gates on inputs and channels, and cut closed ones")
    l0_reg: float = _prune(0.1, help="with --l0: cost of a nonzero weight, divided by the training samples", low=0)
    beta_ema: float = _prune(
        0.999, help="with --l0: decay of the averaged weights used for testing; 0: off", low=0, below=1
    )

    pruning_limit: float = _prune(0.5, help="target sparsity, as a share of --budget", low=0, below=1)
    snip_steps: int = _prune(
        5, help="steps of the iterative criterions between the first and the last", low=0, most=10000
    )
    schedule: str | None = _prune(
        None,
        help="when to prune; default: depends on the criterion",
        choices=("before", "during", "after", "rounds", "iterative"),
    )
    prune_delay: int | None = _prune(None, help="during, after training: epochs before the first interval", low=0)
    prune_freq: int | None = _prune(None, help="during training: epochs between pruning steps", low=1)
    n_rounds: int | None = _rounds(None, help="rounds of one epoch and one pruning step; default: 5", low=1)
    thresholds: tuple[float, ...] = _rounds(
        (), help="sparsity after each round, ascending: 0.3,0.5; percent if any is above 1", low=0,
        metavar="S,S,...",
    )  # fmt: skip
    warmup_epochs: int | None = _rounds(
        None, help="epochs before the first pruning step, including round 1; default: 0", low=0
    )
    lr_prune: float | None = _rounds(None, help="learning rate during the rounds; default: --learning_rate", low=0)
    frequency: int | None = _steps(None, help="batches between steps; default: 30, or fewer in short runs", low=1)
    prune_per_iteration: int | None = _steps(
        None, help="channels or weights to prune per step; default: derived from --pruning_limit", low=0
    )
    maximum_pruning_iterations: int | None = _steps(None, help="total number of steps", low=1)
    prune_neurons_max: int | None = _steps(
        None, help="total number of channels or weights to prune; -1: no limit", low=-1
    )
    start_pruning_after_n_iterations: int | None = _steps(
        None, help="first step that prunes; earlier ones only update the scores; default: 1", low=0
    )
    pruning_momentum: float | None = _steps(
        None, help="momentum of the scores over the steps; default: 0.9", low=0, below=1
    )
    group_size: int | None = _steps(None, help="channels of a layer pruned together; default: 1", low=1)
    l2_normalization_per_layer: bool | None = _steps(None, help="divide the scores of each layer by their L2 norm")
    pruning_threshold: float | None = _steps(
        None, help="skip a step while the mean training loss since the last one is above", low=0
    )
    fixed_criteria: bool | None = _steps(None, help="keep the scores of the first pruning step")
    fixed_layer: int | None = _steps(None, help="prune only the layer of this index (from 0); -1: all", low=-1)
    flops_regularization: float | None = _steps(
        None, help="subtract this from a channel's score per saved multiply-add", low=0
    )
    pruning_config: str | None = _steps(
        None, help="JSON file of Taylor pruning with settings of this section", metavar="FILE", path=True
    )
    preserve_moment: bool = _scores(True, help="keep the state of the optimizer when pruning, or reset it")
    track_importance: bool = _scores(False, help="average the scores of the last batches before each pruning step")
    track_batches: int = _scores(20, help="with --track_importance: number of batches", low=1, most=10**6)
    alpha: float = _scores(0.8, help="with --track_importance: weight of the latest batch", above=0, high=1)
    use_l2: bool = _scores(False, help="multiply the scores of weights by |w|")
    use_init: bool = _scores(False, help="multiply the scores of weights by |w - w0|, w0: initial value")
    T: float | None = _scores(None, help="temperature of the logits in training and scoring; default: 1", above=0)
    grasp_T: float | None = _scores(None, help="short for --set criterion.grasp_temperature=T", above=0)
    imp_samples: int | None = _scores(None, help="short for --set criterion.samples=N", low=1, most=10**7)
    budget: str | None = _prune(
        None,
        help="quantity that --pruning_limit refers to; default: nodes for channel criterions, else weights",
        choices=("nodes", "weights", "params", "macs", "latency"),
    )
    scope: str | None = _prune(
        None,
        help="scores that are ranked together; default: depends on the criterion",
        choices=("global", "layer", "row", "isomorphic"),
    )
    min_channels: int = _prune(1, help="channels to keep in each group; 0: residual blocks may be removed", low=0)
    keep_share: float = _prune(0.0, help="share of the dense channels to keep in each group", low=0, below=1)
    round_to: str = _prune("1", help="round kept channels to a multiple of N; auto: measure", metavar="N|auto")
    attention: str = _prune("dims", help="unit of pruning in attention: channels of all heads, or heads",
                            choices=("dims", "heads"))  # fmt: skip
    inexact: bool = _prune(False, help="also cut channels that a norm or softmax normalises over")
    fold: bool = _prune(False, help="move constant outputs of removed channels into following layers")
    masking: bool = _prune(True, help="keep pruned weights at zero, or let them regrow")
    outer_layer_pruning: bool | None = _prune(
        None, help="also prune weights of the first and last layer; channel criterions: also mask inputs"
    )
    enable_rewinding: bool = _prune(False, help="reset the weights to earlier ones after each pruning step")
    rewind_to: int = _prune(
        0, help="with --enable_rewinding: epoch of these weights; 0: initial", low=0, aliases=("rewind_epoch",)
    )
    pruning_rate: float | None = _prune(
        None, help="--pruning_limit for UnstructuredRandom; otherwise ignored", low=0, below=1
    )
    growing_rate: float = _prune(0.0, help="regrowth of weights, which is not supported: only 0", low=0)
    pruning_method: int | None = _prune(
        None, help="--prune_criterion by its id in Taylor pruning: 0-3, 6, 10, 11, 22, 23, 30, 31, 40, 50",
        low=0, most=99, metavar="ID",
    )  # fmt: skip
    protect: tuple[str, ...] = _prune(
        (), help="never prune modules with this name prefix; repeatable", metavar="PREFIX"
    )

    data_dir: str | None = _data(None, help="folder of the data set", metavar="DIR", path=True)
    download: bool = _data(True, help="download a missing data set")
    val_share: float = _data(0.1, help="share of the training set for validation", low=0, below=1)
    image_size: int | None = _data(None, help="resize images to N x N", low=1, most=8192)
    augment: str = _data(
        "none",
        help="augmentation of the training images",
        choices=("none", "flip", "crop_flip", "cutout", "cutout_rotate", "resized_crop_flip"),
    )
    normalize: str = _data("dataset", help="normalisation of the inputs", choices=("unit", "imagenet", "dataset"))
    input_dim: tuple[int, ...] = _data(
        (),
        help="channels, height and width to expect of the inputs",
        low=1,
        metavar="C,H,W",
    )
    num_classes: int | None = _data(None, help="number of classes to expect of the data set", low=1)
    limit_train_batches: int | None = _data(None, help="use only N batches of each epoch", low=1)
    limit_test_batches: int | None = _data(None, help="use only N batches of each evaluation", low=1)
    random_shuffle_labels: bool = _data(False, help="shuffle the labels of the training set")
    preload_all_data: bool = _data(False, help="keep all images of a folder data set in device memory")
    workers: int = _data(2, help="processes that load data sets larger than memory", low=0, most=256)

    plot_weights_freq: int = _picture(
        50, help="draw figures before and after training and every N epochs; 0: never", low=0
    )
    skip_first_plot: bool = _picture(False, help="draw no figures before training")
    histograms: bool = _picture(True, help="draw histograms of the weights")
    saliency: bool = _picture(True, help="draw input gradients of eight test images")
    confusion: bool = _picture(True, help="draw the confusion matrix")
    plot_weights: bool = _picture(True, help="draw the weights of each layer as an image")
    plot_net: bool = _picture(True, help="draw the dense and the pruned network")
    track_weights: bool = _picture(False, help="track sign flips, mean and variance of every weight")

    attack: str | None = _test(None, help="attack the network, by name or all", metavar="NAME|all")
    epsilons: tuple[str, ...] = _test(
        (), help="largest perturbations of pixels in [0, 1]: 2/255,8/255; default: by norm", metavar="E,E,..."
    )
    attack_samples: int | None = _test(
        None, help="attack N test images, balanced over classes; default: all", low=1
    )
    attack_steps: int | None = _test(None, help="steps of each search; default: by attack", low=1, most=10**6)
    attack_binary_steps: int | None = _test(None, help="binary search rounds of CarliniWagner", low=1, most=1000)
    attack_restarts: int | None = _test(None, help="restarts of random attacks; default: 1", low=1, most=10000)
    attack_batch_size: int | None = _test(None, help="images attacked together; default: 128", low=1, most=10**6)
    compare_with: str | None = _test(
        None, help="run folder of a second network to test on the same images", metavar="FOLDER", path=True
    )

    train_acc: bool = _test(False, help="also report the accuracy on training images")
    test_acc: bool = _test(False, help="also report the accuracy on test images")
    flops: bool = _test(False, help="also report the multiply-adds, pruned and dense")
    compression: bool = _test(False, help="also report the compression ratio in bytes, dense / pruned")

    results_dir: str = _folder("results", help="folder for run folders", metavar="DIR", path=True)
    run_name: str | None = _folder(None, help="suffix of the run folder; default: MODEL_CRITERION", metavar="NAME")
    checkpoint_name: str | None = _folder(
        None,
        help="run folder to start from, by name or path; default with --eval: the newest",
        metavar="FOLDER",
        path=True,
    )
    checkpoint_model: str | None = _folder(
        None, help="file in its models/; default: MODEL_finished", metavar="STEM"
    )
    pretrained: str | None = _folder(
        None,
        help="initial weights: a safetensors file, a state dict of torch or a run folder",
        metavar="PATH",
        path=True,
    )
    new_head: bool = _folder(False, help="with --pretrained: re-initialise the last layer")

    device: str = _machine("auto", help="auto, cpu, cuda, cuda:N or mps", metavar="DEVICE")
    threads: int | None = _machine(None, help="CPU threads; default: chosen by torch", low=1, most=1024)
    deterministic: bool = _machine(True, help="bitwise reproducible results for equal seeds")
    cudnn_benchmark: bool = _machine(False, help="let cuDNN measure and choose the fastest algorithms")
    memory_format: str = _machine(
        "auto", help="memory format; auto: measure", choices=("auto", "contiguous", "channels_last")
    )
    train_memory_format: str = _machine(
        "auto",
        help="memory format after pruning before training; auto: measure",
        choices=("auto", "contiguous", "channels_last"),
    )
    fused: str = _machine("auto", help="fused optimizer step", choices=("auto", "on", "off"))
    latency: bool = _machine(True, help="measure the latency of the dense and the pruned network")
    progress: str = _machine("auto", help="progress bars; auto: only on a terminal", choices=("auto", "on", "off"))

    autoconfig: bool = _extend(True, help="derive settings from other settings")
    plugins: tuple[str, ...] = _extend((), help="folder of plug-ins; repeatable", metavar="DIR", path=True)
    hidden_dim: int | None = _extend(None, help="short for --set model.hidden_dim=N", low=1, most=10**6)
    set: dict[str, dict[str, Any]] = _extend(
        {}, help="option of a plug-in; repeatable; groups: " + ", ".join(GROUPS), metavar="GROUP.KEY=VALUE"
    )

    given: NameSet = field(default_factory=NameSet)
    from_flags: NameSet = field(default_factory=NameSet)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as YAML types, in the order of the fields."""
        values = {name: getattr(self, name) for name in flags_of(type(self))}
        return {
            name: list(value) if isinstance(value, tuple) else copy.deepcopy(value)
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "") -> RunConfig:
        """Return a config with these values; every key counts as given.

        Raises UsageError, beginning with `source`, for an unknown key or a value of a wrong type.
        """
        parsed = parse_values(values, source, flags_of(cls))
        return cls(**parsed, given=NameSet(parsed))

    def options(self, group: str) -> dict[str, Any]:
        """Return the options of a group ("model", "criterion", ...) from `--set` and from shorthand flags."""
        options = dict(self.set.get(group, {}))
        if group == "tester":
            options = {name: getattr(self, name) for name in TESTER_FLAGS if getattr(self, name)} | options
        if group == "model":
            options |= {name: getattr(self, name) for name in SHORT if getattr(self, name) is not None}
        if group == "criterion":
            options = self._criterion_flags() | options
        return options

    def _criterion_flags(self) -> dict[str, Any]:
        """Return the values of the shorthand flags for options that the criterion has."""
        given = {option: getattr(self, flag) for flag, option in CRITERION_FLAGS.items()}
        from secateur.framework.plugins.registry import option_names, registry

        allowed = option_names(registry.get("criterions", self.prune_criterion))
        return {option: value for option, value in given.items() if option in allowed and value is not None}

    def default_run_name(self) -> str:
        """Return the default run name."""
        return f"eval_{self.model}" if self.eval else f"{self.model}_{'L0' if self.l0 else self.prune_criterion}"

    def default_checkpoint_model(self) -> str:
        """Return the default stem of the checkpoint."""
        return f"{self.model}_finished"


FLAGS: dict[str, Flag] = flags_of(RunConfig)
assert {f.name for f in fields(RunConfig)} == {*FLAGS, "given", "from_flags", "notes"}


def parse_values(values: Mapping[str, Any], source: str = "", flags: Mapping[str, Flag] = FLAGS) -> dict[str, Any]:
    """Convert values to the types of their fields; UsageError names `source`, the key and the nearest match."""
    prefix = f"{source}: " if source else ""
    parsed: dict[str, Any] = {}
    spelled = {alias: name for name, flag in flags.items() for alias in flag.aliases}
    for given, value in values.items():
        name = spelled.get(given, given)
        if name not in flags:
            raise UsageError(prefix + unknown("setting", str(name), flags))
        where = f"{prefix}{name}" if source else f"--{name}"
        parsed[name] = _parse_set(value, where) if name == "set" else flags[name].parse(value, where)
    return parsed


def _parse_set(value: Any, where: str) -> dict[str, dict[str, Any]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a mapping of group to options, got {value!r}")
    for group, options in value.items():
        if group not in GROUPS:
            raise UsageError(unknown(f"group of {where}", str(group), GROUPS))
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise UsageError(f"{where}.{group} must be a mapping of option to value, got {options!r}")
    return {group: dict(options) for group, options in value.items()}
