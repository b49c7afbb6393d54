"""Pictures: they show what is there, for every kind of network, and disturb nothing."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from secateur import prune
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import count_macs, layer_sizes, weight_sparsity
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.selection.ranking import select
from secateur.framework.reporting.plots import confusion, network, saliency, scores, weights
from secateur.framework.reporting.plots.gallery import LABELS, some
from secateur.framework.reporting.plots.layers import draw_sparsity
from secateur.framework.reporting.plots.run import Pictures
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl, manager
from secateur.framework.training.trainer import Parts, Settings
from secateur.losses.CrossEntropy import CrossEntropy
from secateur.trainers.DefaultTrainer import DefaultTrainer
from secateur.utils.classification import confusion_counts
from secateur.utils.loading.batches import TensorLoader
from secateur.utils.loading.dataset import DataSet
from secateur.utils.loading.loaders import make_loaders
from tests.networks import ConvNet
from tests.runs.test_run import Run, launch

EVERY = {"layer_sparsity", "network", "network_confusion", "network_saliency", "weight_histograms", "weights"}


class Noise(DataSet):
    """Random images of any shape."""

    num_classes, image_size = 5, 8

    def __init__(self, channels: int = 3, classes: int = 5, size: int = 8) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.image_size = channels, classes, size
        self.mean, self.std = (0.4,) * channels, (0.3,) * channels

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(train))
        shape = (40 if train else 23, self.in_channels, self.image_size, self.image_size)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return images, torch.arange(len(images)) % self.num_classes


def make_trainer(model: nn.Module, dataset: DataSet | None = None, epochs: int = 1) -> DefaultTrainer:
    loaders = make_loaders(dataset or Noise(), batch_size=9, seed=1, val_share=0.25)
    trainer = DefaultTrainer(
        Parts(model, CrossEntropy(), torch.optim.Adam(model.parameters()), loaders), Settings(epochs=epochs)
    )
    trainer.hooks = manager([]).hook
    return trainer


@pytest.fixture
def drawn(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Draw everything there is of a trainer's network; returns (files in the folder, warnings, TensorBoard)."""
    writers = []

    def draw(trainer: DefaultTrainer, **settings: Any) -> tuple[set[str], list[str], EventAccumulator]:
        writer = SummaryWriter(str(tmp_path / "tensorboard"))
        writers.append(writer)
        (tmp_path / "plots").mkdir(exist_ok=True)
        pictures = Pictures(RunConfig(**settings), tmp_path / "plots", writer)
        pictures.before(trainer)
        trainer.progress.samples = 7
        trainer.evaluate(trainer.loaders.test)
        pictures.after(trainer)
        writer.close()
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return {path.stem for path in (tmp_path / "plots").iterdir()}, trainer.progress.warnings, events

    yield draw
    for writer in writers:
        writer.close()


def deep(layers: int = 120) -> nn.Module:
    body = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(layers - 2)]
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 6), *body, nn.Linear(6, 5))


def small(name: str, channels: int) -> nn.Module:
    model: nn.Module = build("models", name, in_channels=channels, num_classes=5, image_size=8)
    return model


def masked(model: nn.Module, channels: int = 3) -> nn.Module:
    batch = (torch.randn(6, channels, 8, 8), torch.arange(6) % 5)
    prune(model, criterion="SNIP", sparsity=0.7, batches=[batch])
    return model


def cut_down(model: nn.Module, channels: int = 3) -> nn.Module:
    batch = (torch.randn(6, channels, 8, 8), torch.arange(6) % 5)
    prune(model, criterion="SNAP", sparsity=0.5, batches=[batch])
    return model


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "convolutions": lambda: (ConvNet(), 3),
    "cut": lambda: (cut_down(ConvNet()), 3),
    "masked": lambda: (masked(ConvNet()), 3),
    "one layer, one colour": lambda: (small("LogisticRegression", 1), 1),
    "one layer, two colours": lambda: (small("LogisticRegression", 2), 2),
    "residual": lambda: (small("ResNet18", 3), 3),
    "120 layers": lambda: (deep(), 3),
}


SLOW = {"residual", "120 layers", "masked", "cut", "convolutions", "one layer, two colours"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in NETWORKS]
)
def test_every_kind_of_network_is_drawn_whole_and_without_a_warning(
    case: str, drawn: Callable[..., Any], tmp_path: Path
) -> None:
    model, channels = NETWORKS[case]()
    trainer = make_trainer(model, Noise(channels))
    files, warnings, events = drawn(trainer)
    assert warnings == [] and files == EVERY
    for file in (tmp_path / "plots").iterdir():
        with Image.open(file) as picture:
            assert min(picture.size) > 200 and max(picture.size) < 6000
            assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or ()) > 10, file
    tags = events.Tags()
    layers = list(layer_sizes(model))
    assert {"network/saliency", "network/confusion", "layer/sparsity", "network/visualisation"} <= set(
        tags["images"]
    )
    assert {f"weight/{name}" for name in layers} <= set(tags["images"])
    assert {"weight/magnitude", *(f"weight/magnitude/{name}" for name in layers)} == set(tags["histograms"])
    assert {"args/text_summary", "architecture/text_summary"} <= set(tags["tensors"])
    assert [event.step for event in events.Images("network/saliency")] == [0, 7]
    assert [event.step for event in events.Images("network/confusion")] == [7]  # untrained: nothing to tell


@pytest.mark.parametrize(
    "flag",
    ["saliency", *(pytest.param(flag, marks=pytest.mark.slow)
                   for flag in ("histograms", "confusion", "plot_weights", "plot_net"))],
)  # fmt: skip
def test_each_picture_can_be_left_out(flag: str, drawn: Callable[..., Any]) -> None:
    name = {"histograms": "weight_histograms", "plot_weights": "weights", "plot_net": "network"}
    files, _, events = drawn(make_trainer(ConvNet()), **{flag: False})
    assert files == EVERY - {name.get(flag, f"network_{flag}")}
    assert bool(events.Tags()["histograms"]) == (flag != "histograms")
    assert any(tag.startswith("weight/") for tag in events.Tags()["images"]) == (flag != "plot_weights")


def test_without_the_first_plot_the_second_is_still_drawn(drawn: Callable[..., Any]) -> None:
    files, _, events = drawn(make_trainer(ConvNet()), skip_first_plot=True)
    assert files == EVERY and [event.step for event in events.Images("layer/sparsity")] == [7]


def test_a_loaded_network_shows_its_confusion_before_training_too(drawn: Callable[..., Any]) -> None:
    _, _, events = drawn(make_trainer(ConvNet()), pretrained="file.safetensors")
    assert [event.step for event in events.Images("network/confusion")] == [0, 7]


class Unseen(nn.Module):
    """A network without a gradient at its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layer(images.detach().mean(dim=(2, 3)))
        return out


def test_a_picture_that_cannot_be_drawn_is_told_and_the_others_are_drawn(drawn: Callable[..., Any]) -> None:
    heard = []

    class Listener:
        @hookimpl
        def warned(self, message: str) -> None:
            heard.append(message)

    trainer = make_trainer(Unseen())
    trainer.hooks = manager([Listener()]).hook
    files, warnings, _ = drawn(trainer)
    assert files == EVERY - {"network_saliency"}
    assert warnings == heard and len(heard) == 2
    assert "saliency not drawn: RuntimeError" in heard[0]


# ------------------------------------------------------------------------------------------- nothing is disturbed


def test_drawing_leaves_weights_buffers_gradients_modes_and_random_numbers_alone(
    drawn: Callable[..., Any],
) -> None:
    model = masked(ConvNet())
    trainer = make_trainer(model)
    model.train()
    model.na.eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters()]
    before = copy.deepcopy(model), [None if g is None else g.clone() for g in gradients]
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    drawn(trainer)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert modes == [module.training for module in model.modules()]
    for parameter, gradient, old in zip(model.parameters(), gradients, before[1], strict=True):
        assert parameter.grad is gradient and parameter.requires_grad
        assert gradient is not None and old is not None and torch.equal(gradient, old)
    for (name, tensor), old in zip(model.state_dict().items(), before[0].state_dict().values(), strict=True):
        assert torch.equal(tensor, old), name
    assert len(Masks(model)) == len(Masks(before[0]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


COMMAND = ("--prune_criterion", "SNAPitDuring", "--prune_freq", "1", "--epochs", "4", "--snip_steps", "0")


@pytest.fixture(scope="module")
def with_pictures(place: Path) -> Run:
    return launch(place, *COMMAND, "--plot_weights_freq", "1", "--track_weights", plots=True)


@pytest.mark.slow
def test_a_run_has_the_same_bits_with_pictures_and_without(with_pictures: Run, place: Path) -> None:
    plain = launch(place, *COMMAND, "--plot_weights_freq", "0")
    assert plain.bytes() == with_pictures.bytes() and plain.bytes("last") == with_pictures.bytes("last")
    told = [key for key in plain.rows[0] if not key.startswith("time/") and key != "seconds"]
    told += ["time/flops_per_sample", "time/flops_log_cum"]
    assert [[row.get(k) for k in told] for row in plain.rows] == [
        [row.get(k) for k in told] for row in with_pictures.rows
    ]
    assert list(plain.folder.plots.iterdir()) == [] and not plain.folder.tracked.exists()
    tags = events_of(plain).Tags()
    assert tags["images"] == tags["histograms"] == tags["tensors"] == []


def events_of(run: Run) -> EventAccumulator:
    events = EventAccumulator(str(run.folder.tensorboard), size_guidance={"images": 0})
    events.Reload()
    return events


@pytest.mark.slow
def test_pictures_come_before_training_every_n_epochs_and_after_it_once_each(with_pictures: Run) -> None:
    events = events_of(with_pictures)
    assert [event.step for event in events.Images("layer/sparsity")] == [0, 96, 192, 288, 384]
    assert [event.step for event in events.Images("network/confusion")] == [96, 192, 288, 384]
    assert [event.step for event in events.Images("track/weight_saliency")] == [192, 288]
    assert [event.step for event in events.Images("track/weights")] == [384]
    found = {path.stem for path in with_pictures.folder.plots.iterdir()}
    assert found == EVERY | {"weight_saliency", "tracked_weights", "layers", "curves", "scores"}
    assert with_pictures.report["warnings"] == []


@pytest.mark.slow
def test_a_larger_interval_draws_less_often(place: Path) -> None:
    run = launch(place, "--prune_criterion", "EmptyCrit", "--epochs", "4", "--plot_weights_freq", "2",
                 "--skip_first_plot", "--no_saliency", plots=True)  # fmt: skip
    events = events_of(run)
    assert [event.step for event in events.Images("layer/sparsity")] == [192, 384]
    assert "network/saliency" not in events.Tags()["images"]


# ------------------------------------------------------------------------------------------------- what they show


def test_confusion_counts_are_those_of_counting_one_by_one() -> None:
    outputs, targets = torch.randn(50, 4), torch.randint(4, (50,))
    expected = [[0] * 4 for _ in range(4)]
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        expected[target][row.index(max(row))] += 1
    assert confusion_counts(outputs, targets).tolist() == expected


def test_confusion_is_over_the_whole_split_with_its_smaller_last_batch() -> None:
    trainer = make_trainer(ConvNet())
    images, targets = Noise().load(False)
    outputs = trainer.model.eval()((images.float() / 255 - 0.4) / 0.3)
    expected = confusion_counts(outputs, targets)
    assert torch.equal(confusion.count_confusion(trainer.model, trainer.loaders.test), expected)
    accuracy = trainer.evaluate(trainer.loaders.test)["acc"]
    assert trainer.confusion is not None and torch.equal(trainer.confusion, expected)
    assert int(expected.sum()) == 23 and accuracy == int(expected.trace()) / 23


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_confusion_picture_has_counts_and_shares_of_each_row() -> None:
    table = torch.tensor([[6, 2, 0], [1, 1, 2], [0, 0, 0]])
    figure = confusion.draw_confusion(table, ("ant", "bee", "cat"), "test", "net")
    counts, shares = figure.axes[:2]
    assert np.array_equal(counts.images[0].get_array(), table.numpy())
    assert np.array_equal(shares.images[0].get_array(), [[75, 25, 0], [25, 25, 50], [0, 0, 0]])
    assert [text.get_text() for text in counts.texts] == ["6", "2", "1", "1", "2"]
    assert [label.get_text() for label in counts.get_yticklabels()] == ["ant", "bee", "cat"]
    assert "12 test images, 7 right (58.33%)" in str(figure.get_suptitle())


def test_many_classes_are_not_written_out() -> None:
    figure = confusion.draw_confusion(torch.eye(300).long(), None, "test", "net")
    assert texts(figure) == [] and len(figure.axes[0].get_yticks()) == 12


@pytest.mark.slow
def test_the_trainers_own_table_is_used_only_where_it_is_of_these_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    count = confusion.count_confusion

    def counted(model: nn.Module, loader: TensorLoader) -> Tensor:
        passes.append(loader)
        return count(model, loader)

    monkeypatch.setattr("secateur.framework.reporting.plots.run.count_confusion", counted)
    trainer = make_trainer(ConvNet())
    with SummaryWriter(str(tmp_path)) as writer:
        pictures = Pictures(RunConfig(), tmp_path, writer)
        trainer.evaluate(trainer.loaders.test)
        pictures.after(trainer)
        assert passes == []
        assert trainer.loaders.val is not None
        trainer.evaluate(trainer.loaders.val)  # another split
        pictures.after(trainer)
        trainer.confusion = None  # a trainer with an evaluation of its own
        pictures.after(trainer)
    assert passes == [trainer.loaders.test] * 2


def test_saliency_is_the_gradient_of_the_predicted_output() -> None:
    torch.manual_seed(0)
    model = ConvNet().double().train()
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gradients, predicted = saliency.input_gradients(model, inputs)
    assert gradients.shape == (2, 8, 8) and all(parameter.grad is None for parameter in model.parameters())
    assert model.training and model.na.num_batches_tracked == 0
    model.eval()
    assert torch.equal(predicted, model(inputs).argmax(dim=1))
    for image, row, column in ((0, 3, 4), (1, 0, 7)):
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(inputs)
            step[image, channel, row, column] = 1e-6
            up, down = (model(inputs + sign * step)[image, predicted[image]].item() for sign in (1, -1))
            slopes.append((up - down) / 2e-6)
        assert float(gradients[image, row, column]) == pytest.approx(max(map(abs, slopes)), rel=1e-5, abs=1e-9)


def test_the_saliency_picture_shows_eight_test_images_as_they_are_on_disk(
    drawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(
        "secateur.framework.reporting.plots.run.draw_saliency",
        lambda pixels, *rest: shown.append(pixels) or Figure(),
    )
    drawn(make_trainer(ConvNet()))
    images, _ = Noise().load(False)
    assert torch.allclose(shown[0], images[:8].float() / 255, atol=1e-6)


@pytest.mark.parametrize("change", [masked, cut_down])
def test_layer_sparsity_is_the_share_of_the_dense_layers_weights_that_are_gone(
    change: Callable[[nn.Module], nn.Module],
) -> None:
    dense = ConvNet()
    model = change(copy.deepcopy(dense))
    whole = {name: p.numel() for name, p in dense.named_parameters() if name[0] in "abcd" and "weight" in name}
    left = {name: int((p != 0).sum()) for name, p in model.named_parameters() if name in whole}
    found = {name: 1 - size.kept for name, size in layer_sizes(model).items()}
    assert found == {name[0]: 1 - left[name] / whole[name] for name in whole}
    total = sum(found[name[0]] * size for name, size in whole.items()) / sum(whole.values())
    assert total == pytest.approx(weight_sparsity(model))
    bars = draw_sparsity(model, "net").axes[0].containers[1]
    assert [bar.get_width() for bar in bars] == pytest.approx([100 * share for share in found.values()])


def test_histograms_are_of_the_weights_that_are_not_zero() -> None:
    model = masked(ConvNet())
    found = weights.nonzero_weights(model)
    for name, values in found.items():
        weight = model.get_submodule(name).weight.detach().flatten()
        assert torch.equal(values, weight[weight != 0])
    figure = weights.draw_histograms(model, "net")
    zero = int((model.c.weight == 0).sum())
    assert f"c, {zero} of 320 zero" in [axes.get_title() for axes in figure.axes]
    (outline,) = figure.axes[0].patches
    x, y = outline.get_xy().T  # type: ignore[attr-defined]
    together = torch.cat(list(found.values())).abs().log10()
    assert (x.min(), x.max()) == pytest.approx((float(together.min()), float(together.max())), abs=1e-4)
    area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    assert 50 * area / (x.max() - x.min()) == pytest.approx(100)  # of both signs, in 50 bins


def test_of_many_layers_the_first_the_last_and_some_between_are_shown() -> None:
    assert some(list(range(100)), 5) == [0, 25, 50, 74, 99] and some([1, 2], 5) == [1, 2]
    model = deep()
    assert len(weights.draw_histograms(model, "net").axes) == 16
    axes = draw_sparsity(model, "net").axes[0]
    assert len(axes.get_yticks()) == len(axes.texts) == LABELS


def test_filters_are_red_above_zero_blue_below_and_white_at_zero() -> None:
    model = nn.Conv2d(1, 2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[[[1.0, -1.0], [0.0, 0.5]]], [[[2.0, 0.0], [0.0, 0.0]]]]))
    (picture,) = weights.weight_images(model, torch.zeros(1, 1, 4, 4)).values()
    step = picture.shape[0] // 4  # two rows of pixels and two of frame
    first = picture[step + step // 2 :: step, step + step // 2 :: step]
    assert first[0, 0].tolist() == [255, 0, 0] and first[0, 1].tolist() == [0, 0, 255]
    assert min(first[1, 0]) >= 253
    assert first[1, 1, 0] > 250 and 100 < first[1, 1, 1] < 150  # half of the largest
    assert first[0, 3].tolist() == [255, 0, 0]  # scaled by its own largest


def test_a_matrix_is_white_exactly_where_every_weight_is_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(30, 20))
    with torch.no_grad():
        model[1].weight[5:] = 0
        model[1].weight[:, ::2] = 0
    picture = weights.weight_images(model, torch.zeros(1, 4))["1"]
    times = picture.shape[0] // 20
    white = (picture[::times, ::times] == 255).all(axis=2)
    assert np.array_equal(white, (model[1].weight == 0).numpy())


def test_the_rows_of_a_first_linear_layer_are_images() -> None:
    model = small("LogisticRegression", 3)
    (picture,) = weights.weight_images(model, torch.zeros(1, 3, 8, 8)).values()
    (weight,) = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    filters = weights._as_filters(weight.detach(), torch.zeros(1, 3, 8, 8))
    assert filters is not None and torch.equal(filters.flatten(1), weight)
    assert picture.shape[2] == 3 and picture.shape[1] > picture.shape[0]


def test_the_layers_of_the_drawing_are_what_is_there() -> None:
    dense, model, example = ConvNet(), ConvNet(), torch.randn(1, 3, 8, 8)
    cut_down(model)
    layers = {layer.name: layer for layer in network.layers_of(model, example)}
    assert list(layers) == ["a", "b", "c", "d"]
    assert [layer.dense_channels for layer in layers.values()] == [6, 8, 10, 5]
    for name, layer in layers.items():
        module, full = model.get_submodule(name), dense.get_submodule(name)
        assert layer.channels == len(module.weight) and layer.weights == module.weight.numel()
        assert layer.dense_weights == full.weight.numel()
        assert layer.parameters == sum(p.numel() for p in module.parameters())
        assert layer.kind == type(module).__name__
    assert layers["a"].output == (len(model.a.weight), 8, 8) and layers["b"].output[1:] == (4, 4)
    assert sum(layer.macs for layer in layers.values()) == count_macs(model, example)[0]
    table = network.table_of(list(layers.values()), model)
    assert f"| a | Conv2d | {len(model.a.weight)} x 8 x 8 | {len(model.a.weight)} of 6 |" in table
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"| all | | | | | {total:,} |" in table


def test_units_that_are_masked_whole_count_as_gone_in_the_drawing() -> None:
    model = ConvNet()
    keep = torch.ones_like(model.b.weight)
    keep[2:5] = 0
    Masks(model).hold({"b.weight": keep})
    layer = network.layers_of(model, torch.randn(1, 3, 8, 8))[1]
    assert (layer.channels, layer.dense_channels) == (5, 8)
    figure = network.draw_network([layer], torch.zeros(1, 3, 8, 8), model, "net")
    assert any("5 of 8" in text for text in texts(figure))


def test_a_layer_that_is_never_used_is_listed_last() -> None:
    model = ConvNet()
    model.spare = nn.Linear(3, 3)
    last = network.layers_of(model, torch.randn(1, 3, 8, 8))[-1]
    assert last.name == "spare" and last.output == () and last.macs == 0
    assert "| spare | Linear | not used |" in network.table_of([last], model)


def event(values: dict[str, Tensor], sparsity: float, scope: str = "global") -> PruneEvent:
    return PruneEvent(sparsity, sparsity, select(values, sparsity, scope=scope), values)


def test_the_threshold_of_a_curve_separates_exactly_what_went_from_what_stayed() -> None:
    values = {name: torch.rand(40, 50) + 0.001 for name in "abc"}
    curve = scores.curve_of(event(values, 0.9))
    assert curve is not None and curve.threshold is not None and curve.entries == 6000
    every = torch.cat([value.flatten() for value in values.values()])
    assert int((every < curve.threshold).sum()) == round(0.9 * 6000)
    assert (np.diff(curve.values) >= 0).all() and len(curve.values) == scores.POINTS
    assert curve.values[0] == every.min() and curve.values[-1] == every.max()
    figure = scores.draw_scores([curve, curve], "net")
    assert figure.axes[0].get_ylabel() == "log10 of the score"
    place, height = figure.axes[0].lines[2].get_data()
    assert place[0] == pytest.approx(90, abs=0.3) and height[0] == pytest.approx(np.log10(curve.threshold))


def test_rankings_of_single_layers_have_no_common_threshold() -> None:
    values = {"a": torch.arange(10.0) + 1, "b": torch.arange(10.0) + 100}
    curve = scores.curve_of(event(values, 0.5, scope="layer"))
    assert curve is not None and curve.threshold is None
    assert (curve.lowest_kept, curve.highest_pruned) == (6, 104)
    legend = scores.draw_scores([curve], "net").axes[0].get_legend()
    assert legend is not None and "pruned up to 1e+02, kept from 6" in legend.get_texts()[0].get_text()


def test_zeros_infinities_and_signed_scores_are_drawn() -> None:
    values = {"a": torch.tensor([0.0, 0, -3, 2, float("inf"), 5])}
    curve = scores.curve_of(event(values, 0.5))
    assert curve is not None and curve.zeros == 2 and curve.values.tolist() == [-3, 0, 0, 2, 5]
    assert scores.draw_scores([curve], "net").axes[0].get_yscale() == "symlog"
    none = scores.curve_of(PruneEvent(0.5, 0.5, select({}, 0.5), {}))
    assert none is None
    zero = scores.curve_of(event({"a": torch.zeros(4)}, 0.5))
    assert zero is not None and zero.threshold == 0
    scores.draw_scores([zero], "net")


def test_a_set_without_validation_images_has_its_confusion_at_the_end(drawn: Callable[..., Any]) -> None:
    trainer = make_trainer(ConvNet())
    trainer.loaders.val = None
    _, warnings, events = drawn(trainer, pretrained="file.safetensors")
    assert warnings == [] and [event.step for event in events.Images("network/confusion")] == [7]


def test_fewer_than_eight_test_images_are_enough(drawn: Callable[..., Any]) -> None:
    trainer = make_trainer(ConvNet())
    images, targets = Noise().load(False)
    options: dict[str, Any] = dict(batch_size=4, mean=(0.4,) * 3, std=(0.3,) * 3)
    trainer.loaders.test = TensorLoader(images[:3], targets[:3], **options)
    files, warnings, _ = drawn(trainer)
    assert files == EVERY and warnings == []
