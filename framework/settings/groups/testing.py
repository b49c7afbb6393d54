"""Flags of evaluations and of the figures of a run."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

_test = section("Testing, with --eval", tests=True)
_attack = section("Testing, with --eval", tests=True, to="tester")
_picture = section("Pictures", dense=False)


@dataclass(frozen=True, kw_only=True)
class Testing:
    """Settings of the tester, and the figures to draw."""

    plot_weights_freq: int = _picture(
        50, "draw figures before and after training and every N epochs; 0: never", low=0
    )
    skip_first_plot: bool = _picture(False, "draw no figures before training")
    histograms: bool = _picture(True, "draw histograms of the weights")
    saliency: bool = _picture(True, "draw input gradients of eight test images")
    confusion: bool = _picture(True, "draw the confusion matrix")
    plot_weights: bool = _picture(True, "draw the weights of each layer as an image")
    plot_net: bool = _picture(True, "draw the dense and the pruned network")
    track_weights: bool = _picture(False, "track sign flips, mean and variance of every weight")
    attack: str | None = _attack(None, "attack the network, by name or all", metavar="NAME|all")
    epsilons: tuple[str, ...] = _attack(
        (), "largest perturbations of pixels in [0, 1]: 2/255,8/255; default: by norm", metavar="E,E,..."
    )
    attack_samples: int | None = _attack(None, "attack N test images, balanced over classes; default: all", low=1)
    attack_steps: int | None = _attack(
        None, "steps of each search; default: by attack", low=1, most=10**6, attack="steps"
    )
    attack_binary_steps: int | None = _attack(
        None, "binary search rounds of CarliniWagner", low=1, most=1000, attack="rounds"
    )
    attack_restarts: int | None = _attack(
        None, "restarts of random attacks; default: 1", low=1, most=10000, attack="random"
    )
    attack_batch_size: int | None = _attack(None, "images attacked together; default: 128", low=1, most=10**6)
    compare_with: str | None = _test(
        None, "run folder of a second network to test on the same images", metavar="FOLDER", path="read"
    )
    train_acc: bool = _test(False, "also report the accuracy on training images")
    test_acc: bool = _test(False, "also report the accuracy on test images")
    flops: bool = _test(False, "also report the multiply-adds, pruned and dense")
    compression: bool = _test(False, "also report the compression ratio in bytes, dense / pruned")
