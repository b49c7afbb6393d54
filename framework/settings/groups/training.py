"""Flags of training."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

_train = section("Training")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the training loop, the optimizer and the loss."""

    epochs: int = _train(
        10, "number of passes over the training set", low=0, most=10**6, phase="training", to="loop"
    )
    batch_size: int = _train(128, "samples per step", low=1, most=10**6, inherit="test", study=True, to="loaders")
    seed: int = _train(
        333, "seed of all random numbers", low=0, high=2**32 - 1, inherit="data", study=True, to="loaders loop"
    )
    learning_rate: float = _train(0.002, "learning rate", low=0, to="optimizer.lr", phase="training")
    momentum: float = _train(
        0.9, "momentum of SGD", low=0, below=1, to="optimizer", needs=("optimizer", ("SGD",)), phase="training"
    )
    l2_reg: float = _train(
        5e-05,
        "weight decay of weights; none for biases and norm layers",
        low=0,
        to="optimizer.weight_decay trainer",
        phase="training",
    )
    l1_reg: float = _train(0.0, "weight of the L1 norm in the loss", low=0, to="loss")
    lp_reg: float = _train(0.0, "weight of sum |w|^0.2 in the loss", low=0, to="loss")
    hoyer_reg: float | None = _train(
        None, "weight of the Hoyer measure in the loss; default: see the loss", low=0, to="loss"
    )
    label_smoothing: float = _train(0.0, "label smoothing of the loss", low=0, high=1, to="loss")
    grad_clip: float = _train(
        10.0, "clip the gradient to this L2 norm; 0 or less: off", phase="training", to="loop"
    )
    grad_noise: float = _train(
        0.0, "standard deviation of Gaussian noise added to gradients", low=0, phase="training", to="loop"
    )
    lr_schedule: str = _train(
        "none", "learning rate schedule", choices=("none", "step", "multistep", "cosine"), phase="training"
    )
    lr_step: int = _train(
        30, "for step: epochs between decays", low=1, needs=("lr_schedule", ("step",)), phase="training"
    )
    lr_milestones: tuple[int, ...] = _train(
        (),
        "for multistep: epochs of the decays, such as 30,60,80",
        low=1,
        metavar="N,N,...",
        needs=("lr_schedule", ("multistep",)),
        phase="training",
    )
    lr_gamma: float = _train(
        0.1,
        "for step and multistep: factor of each decay",
        low=0,
        needs=("lr_schedule", ("step", "multistep")),
        phase="training",
    )
    group_wd_coeff: float = _train(
        0.0, "reduce the L2 norm of each convolution filter by this in each step; 0: off", low=0
    )
    track_stats: bool = _train(False, "also test after every epoch and report all accuracies", dense=False)
    max_training_minutes: float = _train(
        0.0, "stop training after this many minutes; 0 or less: off", phase="training", to="loop"
    )
    eval_freq: int = _train(
        0, "also validate every N batches; 0: only after each epoch", low=0, phase="training", to="loop"
    )
    save_freq: int = _train(
        0, "also save a checkpoint every N epochs; 0: off", low=0, phase="training", dense=False
    )
