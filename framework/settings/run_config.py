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

# The plug-in kind behind each field that names a plug-in.
KINDS = {
    "model": "models",
    "prune_criterion": "criterions",
    "loss": "losses",
    "optimizer": "optimizers",
    "train_scheme": "trainers",
    "test_scheme": "testers",
    "data_set": "datasets",
}
# The field whose plug-in a group of `--set GROUP.KEY=VALUE` speaks to.
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
# Flags that ask a test of a checkpoint for more numbers.
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

    `given` holds the names of the fields that a flag or a config file set; autoconfig leaves those alone.
    `from_flags` are those among them that the command line set.
    `notes` holds what was decided for the user, one line each, for the log.
    """

    model: str = _what("LeNet5", help="network", metavar="NAME")
    arch: str | None = _what(
        None, help="network of torchvision, for --model TorchvisionModel; default: resnet18", metavar="NAME"
    )
    prune_criterion: str = _what("SNAPit", help="pruning criterion; EmptyCrit prunes nothing", metavar="NAME")
    data_set: str = _what("FASHION_MINI", help="data set", metavar="NAME")
    loss: str = _what("CrossEntropy", help="loss", metavar="NAME")
    optimizer: str = _what("ADAM", help="optimizer", metavar="NAME")
    train_scheme: str = _what("DefaultTrainer", help="trainer", metavar="NAME")
    test_scheme: str = _what("Accuracy", help="tester", metavar="NAME")
    eval: bool = _what(False, help="only evaluate a checkpoint")
    hoyer_square: bool = _what(False, help="loss and criterion HoyerSquare")
    group_hoyer_square: bool = _what(False, help="loss and criterion GroupHoyerSquare")
    train_dense: bool = _what(False, help="also train the dense network, to compare with")
    tuning: bool = _what(False, help="hold out 20 % of the training set and leave the test set alone")

    epochs: int = _train(10, help="passes over the training set", low=0, most=10**6)
    batch_size: int = _train(128, help="samples per step", low=1, most=10**6)
    seed: int = _train(333, help="seed of everything random", low=0, high=2**32 - 1)
    learning_rate: float = _train(2e-3, help="learning rate", low=0)
    momentum: float = _train(0.9, help="momentum of SGD", low=0, below=1)
    l2_reg: float = _train(5e-5, help="weight decay, of weights alone: not of biases and norms", low=0)
    l1_reg: float = _train(0.0, help="weight of the L1 norm in the loss", low=0)
    lp_reg: float = _train(0.0, help="weight of sum |w|^0.2 in the loss", low=0)
    hoyer_reg: float | None = _train(
        None, help="weight of the measure in the Hoyer losses; default: the loss's own", low=0
    )
    label_smoothing: float = _train(0.0, help="label smoothing of the loss", low=0, high=1)
    grad_clip: float = _train(10.0, help="largest L2 norm of the gradient; 0 or less: off")
    grad_noise: float = _train(0.0, help="deviation of the normal noise added to gradients", low=0)
    lr_schedule: str = _train(
        "none", help="how the learning rate falls", choices=("none", "step", "multistep", "cosine")
    )
    lr_step: int = _train(30, help="epochs between falls, for step", low=1)
    lr_milestones: tuple[int, ...] = _train(
        (), help="epochs of the falls, for multistep: 30,60,80", low=1, metavar="N,N,..."
    )
    lr_gamma: float = _train(0.1, help="factor of each fall", low=0)
    group_wd_coeff: float = _train(
        0.0, help="what every filter of a convolution loses of its L2 norm in each step; 0: off", low=0
    )
    track_stats: bool = _train(False, help="also test after every epoch, and list all accuracies in the report")
    max_training_minutes: float = _train(0.0, help="stop training after so many minutes; 0 or less: off")
    eval_freq: int = _train(0, help="also validate every N batches; 0: at epoch ends only", low=0)
    save_freq: int = _train(0, help="also save a checkpoint every N epochs; 0: off", low=0)

    l0: bool = _prune(False, help="train gates on inputs and channels (hard-concrete), and cut those that close")
    l0_reg: float = _prune(0.1, help="with l0: cost of a weight that is there, over the training samples", low=0)
    beta_ema: float = _prune(
        0.999, help="with l0: decay of the averaged weights that are tested; 0: off", low=0, below=1
    )

    pruning_limit: float = _prune(0.5, help="sparsity to reach, of nodes or of weights", low=0, below=1)
    snip_steps: int = _prune(5, help="steps of the iterative criterions", low=0, most=10000)
    schedule: str | None = _prune(
        None,
        help="when to prune; default: the criterion's own",
        choices=("before", "during", "after", "rounds", "iterative"),
    )
    prune_delay: int | None = _prune(None, help="epochs before the first pruning during training", low=0)
    prune_freq: int | None = _prune(None, help="epochs between prunings during training", low=1)
    n_rounds: int | None = _rounds(None, help="rounds of an epoch and a pruning; default: 5", low=1)
    thresholds: tuple[float, ...] = _rounds(
        (), help="shares gone after each round, rising: 0.3,0.5; percent where one is above 1", low=0,
        metavar="S,S,...",
    )  # fmt: skip
    warmup_epochs: int | None = _rounds(
        None, help="epochs before pruning, the last is that of round 1; default: 0", low=0
    )
    lr_prune: float | None = _rounds(
        None, help="learning rate in the epochs of the rounds; default: --learning_rate", low=0
    )
    frequency: int | None = _steps(None, help="batches between steps; default: 30, fewer in short runs", low=1)
    prune_per_iteration: int | None = _steps(
        None, help="channels, or weights, that go in a step; default: as --pruning_limit needs", low=0
    )
    maximum_pruning_iterations: int | None = _steps(None, help="steps in all", low=1)
    prune_neurons_max: int | None = _steps(
        None, help="channels, or weights, that go in all at most; -1: any number", low=-1
    )
    start_pruning_after_n_iterations: int | None = _steps(
        None, help="the first step that prunes; those before only score; default: 1", low=0
    )
    pruning_momentum: float | None = _steps(
        None, help="weight of the earlier steps' scores; default: 0.9", low=0, below=1
    )
    group_size: int | None = _steps(None, help="channels of a layer that go together; default: 1", low=1)
    l2_normalization_per_layer: bool | None = _steps(None, help="divide a layer's scores by their L2 norm")
    pruning_threshold: float | None = _steps(
        None, help="no step while the mean training loss since the last is above", low=0
    )
    fixed_criteria: bool | None = _steps(None, help="keep the scores of the first step that prunes")
    fixed_layer: int | None = _steps(None, help="prune this layer alone, the first is 0; -1: all", low=-1)
    flops_regularization: float | None = _steps(
        None, help="what a multiply-add that goes takes off a channel's score", low=0
    )
    pruning_config: str | None = _steps(
        None, help="JSON file of Taylor pruning, read as the flags of this part", metavar="FILE", path=True
    )
    preserve_moment: bool = _scores(True, help="keep the optimizer's state when pruning; without, it starts anew")
    track_importance: bool = _scores(False, help="average the scores of the last batches before each pruning")
    track_batches: int = _scores(20, help="with track_importance: how many batches", low=1, most=10**6)
    alpha: float = _scores(0.8, help="with track_importance: weight of the newest batch", above=0, high=1)
    use_l2: bool = _scores(False, help="weigh the scores of single weights by |w|")
    use_init: bool = _scores(False, help="weigh them by |w - w0|, w0 where the run began")
    T: float | None = _scores(
        None, help="temperature: divides the logits in the training loss and in scoring; default: 1", above=0
    )
    grasp_T: float | None = _scores(None, help="short for --set criterion.grasp_temperature=T", above=0)
    imp_samples: int | None = _scores(None, help="short for --set criterion.samples=N", low=1, most=10**7)
    budget: str | None = _prune(
        None,
        help="what --pruning_limit is a share of; default: nodes for channel criterions, else weights",
        choices=("nodes", "weights", "params", "macs", "latency"),
    )
    scope: str | None = _prune(
        None,
        help="what competes with what; default: the criterion's own",
        choices=("global", "layer", "row", "isomorphic"),
    )
    min_channels: int = _prune(1, help="channels that stay in each group; 0: whole residual blocks may go", low=0)
    keep_share: float = _prune(
        0.0, help="share of each group's channels in the dense network that stays", low=0, below=1
    )
    round_to: str = _prune("1", help="channels left are a multiple of N; auto measures", metavar="N|auto")
    attention: str = _prune("dims", help="what goes from attention: channels of all heads, or heads",
                            choices=("dims", "heads"))  # fmt: skip
    inexact: bool = _prune(False, help="also cut channels that a norm or softmax reduces over")
    fold: bool = _prune(False, help="move constants of removed channels into the layers that read them")
    masking: bool = _prune(True, help="hold pruned weights at zero; without, they may grow again")
    outer_layer_pruning: bool | None = _prune(
        None, help="also prune the first and the last layer's weights; for channel criterions: also mask inputs"
    )
    enable_rewinding: bool = _prune(False, help="go back to early weights after each pruning in training")
    rewind_to: int = _prune(
        0, help="epochs after which those weights were kept; 0: initial", low=0, aliases=("rewind_epoch",)
    )
    pruning_rate: float | None = _prune(
        None, help="alone: --pruning_limit of UnstructuredRandom; else without effect", low=0, below=1
    )
    growing_rate: float = _prune(0.0, help="weights never grow again: only 0", low=0)
    pruning_method: int | None = _prune(
        None, help="--prune_criterion by its id in Taylor pruning: 0-3, 6, 10, 11, 22, 23, 30, 31, 40, 50",
        low=0, most=99, metavar="ID",
    )  # fmt: skip
    protect: tuple[str, ...] = _prune(
        (), help="never prune modules whose name begins so; repeatable", metavar="PREFIX"
    )

    data_dir: str | None = _data(None, help="where the data set lies", metavar="DIR", path=True)
    download: bool = _data(True, help="download a data set that is not there")
    val_share: float = _data(0.1, help="share of the training set to pick the best checkpoint by", low=0, below=1)
    image_size: int | None = _data(None, help="resize images to N x N", low=1, most=8192)
    augment: str = _data(
        "none",
        help="augmentation of the training set",
        choices=("none", "flip", "crop_flip", "cutout", "cutout_rotate", "resized_crop_flip"),
    )
    normalize: str = _data("dataset", help="scale of the inputs", choices=("unit", "imagenet", "dataset"))
    input_dim: tuple[int, ...] = _data(
        (),
        help="channels, height, width of the inputs; must be the data set's, resized",
        low=1,
        metavar="C,H,W",
    )
    num_classes: int | None = _data(None, help="number of classes; must be the data set's", low=1)
    limit_train_batches: int | None = _data(None, help="use only N batches of each epoch", low=1)
    limit_test_batches: int | None = _data(None, help="use only N batches of each evaluation", low=1)
    random_shuffle_labels: bool = _data(False, help="shuffle the labels of the training set")
    preload_all_data: bool = _data(False, help="keep all images of a folder data set in memory, on the device")
    workers: int = _data(2, help="processes that load data sets too large for memory", low=0, most=256)

    plot_weights_freq: int = _picture(
        50, help="draw pictures before training, after it and every N epochs; 0: none at all", low=0
    )
    skip_first_plot: bool = _picture(False, help="draw no pictures before training")
    histograms: bool = _picture(True, help="histograms of the weights")
    saliency: bool = _picture(True, help="input gradients of eight test images")
    confusion: bool = _picture(True, help="confusion matrix of the evaluated images")
    plot_weights: bool = _picture(True, help="the weights of each layer as a picture")
    plot_net: bool = _picture(True, help="drawing of the network, dense and as it is")
    track_weights: bool = _picture(
        False, help="count sign flips and keep mean and variance of every weight, after each step"
    )

    attack: str | None = _test(None, help="with --eval: attack the network, by a name or all", metavar="NAME|all")
    epsilons: tuple[str, ...] = _test(
        (), help="largest perturbations, in pixels of [0, 1]: 2/255,8/255; default: by norm", metavar="E,E,..."
    )
    attack_samples: int | None = _test(
        None, help="attack N test images, equally many of each class; default: all", low=1
    )
    attack_steps: int | None = _test(None, help="steps of each search; default: its own", low=1, most=10**6)
    attack_binary_steps: int | None = _test(None, help="rounds of CarliniWagner's search", low=1, most=1000)
    attack_restarts: int | None = _test(None, help="tries of random attacks; default: 1", low=1, most=10000)
    attack_batch_size: int | None = _test(None, help="images attacked together; default: 128", low=1, most=10**6)
    compare_with: str | None = _test(
        None, help="run folder whose finished network is tested on the same images", metavar="FOLDER", path=True
    )

    train_acc: bool = _test(False, help="with --eval: also the accuracy on the training images, not augmented")
    test_acc: bool = _test(False, help="with --eval: also the accuracy on the test images, whatever the tester")
    flops: bool = _test(False, help="with --eval: also the multiply-adds of one sample, of the dense network too")
    compression: bool = _test(
        False, help="with --eval: also the compression ratio, bytes of the dense network / bytes now"
    )

    results_dir: str = _folder("results", help="where run folders are made", metavar="DIR", path=True)
    run_name: str | None = _folder(
        None, help="end of the run folder's name; default: MODEL_CRITERION", metavar="NAME"
    )
    checkpoint_name: str | None = _folder(
        None,
        help="run folder to go on from, a name under --results_dir or a path; with --eval the newest",
        metavar="FOLDER",
        path=True,
    )
    checkpoint_model: str | None = _folder(None, help="file in its models/; MODEL_finished", metavar="STEM")
    pretrained: str | None = _folder(
        None,
        help="weights to start from: a safetensors file, a state dict of torch or a run folder",
        metavar="PATH",
        path=True,
    )
    new_head: bool = _folder(False, help="with --pretrained: start the last layer anew, for other classes")

    device: str = _machine("auto", help="auto, cpu, cuda, cuda:N or mps", metavar="DEVICE")
    threads: int | None = _machine(None, help="CPU threads; default: torch's own choice", low=1, most=1024)
    deterministic: bool = _machine(True, help="same seed, same bits")
    cudnn_benchmark: bool = _machine(False, help="let cuDNN pick the fastest algorithms")
    memory_format: str = _machine(
        "auto", help="layout of tensors; auto measures", choices=("auto", "contiguous", "channels_last")
    )
    train_memory_format: str = _machine(
        "auto",
        help="layout after pruning before training; auto measures",
        choices=("auto", "contiguous", "channels_last"),
    )
    fused: str = _machine("auto", help="fused optimizer step", choices=("auto", "on", "off"))
    latency: bool = _machine(True, help="at the end, time the dense network and the pruned one")
    progress: str = _machine("auto", help="progress bars; auto: on a terminal", choices=("auto", "on", "off"))

    autoconfig: bool = _extend(True, help="fill settings that follow from others")
    plugins: tuple[str, ...] = _extend((), help="your own plug-ins; repeatable", metavar="DIR", path=True)
    hidden_dim: int | None = _extend(None, help="short for --set model.hidden_dim=N", low=1, most=10**6)
    set: dict[str, dict[str, Any]] = _extend(
        {}, help="option of a plug-in; repeatable; groups: " + ", ".join(GROUPS), metavar="GROUP.KEY=VALUE"
    )

    given: NameSet = field(default_factory=NameSet)
    from_flags: NameSet = field(default_factory=NameSet)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All settings as YAML can hold them, in the order of the fields."""
        values = {name: getattr(self, name) for name in flags_of(type(self))}
        return {
            name: list(value) if isinstance(value, tuple) else copy.deepcopy(value)
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "") -> RunConfig:
        """The config that `values` describes; every key counts as given.

        Raises UsageError, beginning with `source`, for an unknown key or a value of another type.
        """
        parsed = parse_values(values, source, flags_of(cls))
        return cls(**parsed, given=NameSet(parsed))

    def options(self, group: str) -> dict[str, Any]:
        """What `--set` says for a group ("model", "criterion", ...), with the shorthand flags folded in."""
        found = dict(self.set.get(group, {}))
        if group == "tester":
            found = {name: getattr(self, name) for name in TESTER_FLAGS if getattr(self, name)} | found
        if group == "model":
            found |= {name: getattr(self, name) for name in SHORT if getattr(self, name) is not None}
        if group == "criterion":
            found = self._criterion_flags() | found
        return found

    def _criterion_flags(self) -> dict[str, Any]:
        """The short flags of those options that the criterion has."""
        given = {option: getattr(self, flag) for flag, option in CRITERION_FLAGS.items()}
        from secateur.framework.plugins.registry import option_names, registry

        own = option_names(registry.get("criterions", self.prune_criterion))
        return {option: value for option, value in given.items() if option in own and value is not None}

    def default_run_name(self) -> str:
        """The run name when the user gave none."""
        return f"eval_{self.model}" if self.eval else f"{self.model}_{'L0' if self.l0 else self.prune_criterion}"

    def default_checkpoint_model(self) -> str:
        """The checkpoint's stem when the user gave none."""
        return f"{self.model}_finished"


FLAGS: dict[str, Flag] = flags_of(RunConfig)
assert {f.name for f in fields(RunConfig)} == {*FLAGS, "given", "from_flags", "notes"}


def parse_values(values: Mapping[str, Any], source: str = "", flags: Mapping[str, Flag] = FLAGS) -> dict[str, Any]:
    """Give each value its field's type; UsageError names `source`, the key and the nearest match."""
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
