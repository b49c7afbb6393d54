"""Flags of training."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

_train = section("Training")
_loop = section("Training", phase="training", to="loop")
_training = section("Training", phase="training")
_loss = section("Training", to="loss")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the training loop, the optimizer and the loss."""

    epochs: int = _loop(10, "number of passes over the training set", low=0, most=10**6)
    batch_size: int = _train(128, "samples per step", low=1, most=10**6, inherit="test", study=True, to="loaders")
    seed: int = _train(
        333, "seed of all random numbers", low=0, high=2**32 - 1, inherit="data", study=True, to="loaders loop"
    )
    learning_rate: float = _training(0.002, "learning rate", low=0, to="optimizer.lr")
    momentum: float = _training(
        0.9, "momentum of SGD", low=0, below=1, to="optimizer", needs=("optimizer", ("SGD",))
    )
    l2_reg: float = _training(
        5e-05,
        "weight decay of weights; none for biases and norm layers",
        low=0,
        to="optimizer.weight_decay trainer",
    )
    l1_reg: float = _loss(0.0, "weight of the L1 norm in the loss", low=0)
    lp_reg: float = _loss(0.0, "weight of sum |w|^0.2 in the loss", low=0)
    hoyer_reg: float | None = _loss(None, "weight of the Hoyer measure in the loss; default: see the loss", low=0)
    decay: float | None = _train(
        None, "strength of the regulariser; default: see the regulariser", low=0, to="loss regulariser"
    )
    reg_groups: str | None = _train(
        None,
        "groups of a structural regulariser; default: whole",
        choices=("whole", "fibres", "coupled"),
        to="loss.groups regulariser.groups",
    )
    label_smoothing: float = _loss(0.0, "label smoothing of the loss", low=0, high=1)
    grad_clip: float = _loop(10.0, "clip the gradient to this L2 norm; 0 or less: off")
    grad_noise: float = _loop(0.0, "standard deviation of Gaussian noise added to gradients", low=0)
    lr_schedule: str = _training("none", "learning rate schedule", choices=("none", "step", "multistep", "cosine"))
    lr_step: int = _training(30, "for step: epochs between decays", low=1, needs=("lr_schedule", ("step",)))
    lr_milestones: tuple[int, ...] = _training(
        (),
        "for multistep: epochs of the decays, such as 30,60,80",
        low=1,
        metavar="N,N,...",
        needs=("lr_schedule", ("multistep",)),
    )
    lr_gamma: float = _training(
        0.1, "for step and multistep: factor of each decay", low=0, needs=("lr_schedule", ("step", "multistep"))
    )
    group_wd_coeff: float = _train(
        0.0, "reduce the L2 norm of each convolution filter by this in each step; 0: off", low=0
    )
    track_stats: bool = _train(False, "also test after every epoch and report all accuracies", dense=False)
    max_training_minutes: float = _loop(0.0, "stop training after this many minutes; 0 or less: off")
    eval_freq: int = _loop(0, "also validate every N batches; 0: only after each epoch", low=0)
    save_freq: int = _training(0, "also save a checkpoint every N epochs; 0: off", low=0, dense=False)
