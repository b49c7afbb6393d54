"""Flags that choose the plug-ins of a run. The only file of the core that names plug-ins."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

#: the criterion that prunes nothing, of a dense run
NOTHING = "EmptyCrit"
#: the criterion that a study of importance measures as the reference
REFERENCE = "Oracle"
#: the criterion of `prune`, unless one is given
LIBRARY_CRITERION = "SNAP"
# plug-ins that a preset chooses, by the flags that name them
L0 = {"prune_criterion": NOTHING, "loss": "L0CrossEntropy", "train_scheme": "L0Trainer"}
HOYER_SQUARE = {"loss": "HoyerSquare", "prune_criterion": "HoyerSquare"}
GROUP_HOYER_SQUARE = {"loss": "GroupHoyerSquare", "prune_criterion": "GroupHoyerSquare"}
#: numbers of the regularisers in the programs of DeepHoyer, by the table of `--reg_table`; the first is none
REGULARISERS = {
    "element": ("none", "L1", "Hoyer", "HoyerSquare", "TransformedL1"),
    "structure": ("none", "GroupLasso", "GroupHoyerSquare"),
    "cifar_group": ("none", "GroupLasso", "GroupHoyer", "GroupHoyerSquare"),
}

_what = section("What to run")


@dataclass(frozen=True, kw_only=True)
class What:
    """Plug-ins of a run, and what it does with them."""

    model: str = _what(
        "LeNet5", "network to prune; see `list models`", plugin="models", options="model", study=True
    )
    arch: str | None = _what(
        None,
        "network of torchvision, for --model TorchvisionModel; default: resnet18",
        metavar="NAME",
        to="model",
        study=True,
    )
    prune_criterion: str = _what(
        "SNAPit",
        "pruning criterion; EmptyCrit: none; see `list criterions`",
        plugin="criterions",
        options="criterion",
        dense=False,
    )
    data_set: str = _what(
        "FASHION_MINI",
        "data set to train on; see `list data_sets`",
        plugin="datasets",
        options="dataset",
        inherit="data",
        study=True,
    )
    loss: str = _what("CrossEntropy", "loss", plugin="losses", options="loss", inherit="test", study=True)
    reg: str | None = _what(
        None,
        "regulariser added to the loss, by name or by its number in --reg_table; none: off",
        metavar="NAME|ID",
    )
    reg_table: str = _what("element", "table of the numbers of --reg", choices=tuple(REGULARISERS))
    optimizer: str = _what("ADAM", "optimizer", plugin="optimizers", options="optimizer")
    train_scheme: str = _what("DefaultTrainer", "trainer", plugin="trainers", options="trainer")
    test_scheme: str = _what("Accuracy", "tester", plugin="testers", options="tester")
    eval: bool = _what(False, "only evaluate a checkpoint")
    hoyer_square: bool = _what(False, "use loss and criterion HoyerSquare", dense=False, preset=HOYER_SQUARE)
    group_hoyer_square: bool = _what(
        False, "use loss and criterion GroupHoyerSquare", dense=False, preset=GROUP_HOYER_SQUARE
    )
    l0: bool = _what(False, "train hard-concrete gates on inputs and channels, and cut closed ones", preset=L0)
    train_dense: bool = _what(False, "also train the dense network for comparison", dense=False)
    tuning: bool = _what(
        False,
        "test on a held-out 20 % of the training set instead of the test set",
        inherit="data",
        study=True,
        to="loaders",
    )
