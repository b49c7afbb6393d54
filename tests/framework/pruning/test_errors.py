"""Whatever goes wrong while tracing or cutting: one line says what, and nothing has changed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import measure, prune, select
from secateur.framework.network.lineage import Lineage, lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.pruning.adapters import base
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.surgery import cutting
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, Net, ResNet, images, random_keep, same, seeded, snapshot


@dataclass
class Everything:
    """All that an error must leave as it was: values and the very objects that hold them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    mappings: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before, self._values = self._state(), self._copies()

    def _tensors(self) -> list[Tensor]:
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if self.optimizer is not None:
            held += [value for entries in self.optimizer.state.values() for value in entries.values()]
        return [*held, *(tensor for mapping in self.mappings for tensor in mapping.values())]

    def _copies(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors()]

    def _state(self) -> Any:
        # repr: attributes such as out_channels
        names = [name for name, _ in [*self.model.named_parameters(), *self.model.named_buffers()]]
        modules = list(self.model.modules())
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
        record: Lineage = copy.deepcopy(lineage_of(self.model))
        inner = self.optimizer.param_groups if self.optimizer is not None else []
        return (
            names,
            repr(self.model),
            [module.training for module in modules],
            hooks,
            [parameter.requires_grad for parameter in self.model.parameters()],
            [id(tensor) for tensor in self._tensors()],
            [[id(parameter) for parameter in group["params"]] for group in inner],
            [list(mapping) for mapping in self.mappings],
            {key: index.tolist() for key, index in record.kept.items()},
            record.dense,
            torch.get_rng_state().tolist(),
            torch.backends.mha.get_fastpath_enabled(),
        )

    def assert_as_before(self) -> None:
        assert self._state() == self._before
        assert all(map(torch.equal, self._copies(), self._values))


def used(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network in training: gradients, momentum, a frozen parameter, a part in eval mode, masked weights."""
    model = seeded(make)
    list(model.parameters())[3].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(images()), torch.arange(4)).backward()
    optimizer.step()
    next(model.children()).eval()
    weight = next(name for name, parameter in model.named_parameters() if parameter.dim() == 4)
    Masks(model).hold({weight: torch.rand(model.get_parameter(weight).shape) < 0.8})
    return model, optimizer


def assert_one_line(raised: pytest.ExceptionInfo[UsageError]) -> None:
    text = str(raised.value)
    assert text and "\n" not in text and text == text.strip()


# tracing


class Failing(ConvNet):
    """Counts its calls, and raises what it is told to in the middle of the forward pass."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.calls = self.calls + 1
        if self.error is not None:
            torch.rand(3)
            self.a(images)
            raise self.error
        return super().forward(images)


REJECTED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "too large": (ConvNet, images(1, size=20), {}, r"ConvNet rejects an input of shape \(1, 3, 20, 20\): mat1"),
    "other channels": (ConvNet, images(1, channels=4), {}, r"\(1, 4, 8, 8\): .*expected input"),
    "other dimensions": (ConvNet, torch.randn(2, 7), {}, r"\(1, 7\): Expected"),
    "integers": (ConvNet, torch.ones(1, 3, 8, 8, dtype=torch.int64), {}, r"ConvNet rejects an input of shape"),
    "other precision": (ConvNet, images(1, dtype=torch.float64), {}, r"ConvNet rejects an input of shape"),
    "no sample": (ConvNet, images(0), {}, "sample|batch|empty|rejects an input of shape"),
    "no tensor": (ConvNet, [1.0, 2.0], {}, "example_input is a batch, one tensor .*; got list"),
    "nothing": (ConvNet, None, {}, "example_input is a batch, one tensor .*; got NoneType"),
    "a number": (ConvNet, torch.tensor(3.0), {}, "example_input is a batch"),
    "an error of two lines": (
        lambda: Failing(RuntimeError("first\nsecond")), images(), {}, r"Failing rejects .*: first$"
    ),
    "an error of no words": (lambda: Failing(ValueError()), images(), {}, r"Failing rejects .*: ValueError$"),
    "no layer": (nn.ReLU, images(), {}, "ReLU has no prunable layer"),
    "norms alone": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.PReLU(3)), images(), {}, "has no prunable layer"),
    "unknown module": (ConvNet, images(), {"protect": ["a", "bb"]}, "unknown module to protect 'bb'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_a_network_that_cannot_be_traced_is_left_alone(case: str) -> None:
    make, example, options, words = REJECTED[case]
    model = used(make)[0] if make is ConvNet else seeded(make)
    everything = Everything(model)
    with pytest.raises(UsageError, match=words) as raised:
        channel_groups(model, example, **options)
    assert_one_line(raised)
    everything.assert_as_before()


def test_an_error_that_begins_with_an_empty_line_is_told_all_the_same() -> None:
    with pytest.raises(UsageError, match="what went wrong$") as raised:
        channel_groups(seeded(lambda: Failing(RuntimeError("\n  what went wrong\n"))), images())
    assert_one_line(raised)


def test_an_interrupted_trace_leaves_the_network_alone() -> None:
    class Stopped(Failing):
        def forward(self, images: Tensor) -> Tensor:
            super().forward(images)
            raise KeyboardInterrupt

    model = seeded(Stopped)
    everything = Everything(model)
    with pytest.raises(KeyboardInterrupt):
        channel_groups(model, images())
    everything.assert_as_before()


# masks that make no sense

BAD_MASKS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown group": ({"stemm": torch.ones(6) > 0}, "unknown channel group 'stemm': did you mean 'stem'"),
    "protected group": ({"d": torch.arange(5) > 0}, r"group 'd' is protected \(model output\) and cannot be cut"),
    "too short": ({"stem": torch.ones(5) > 0}, r"mask of 'stem' is torch.bool \(5,\), expected bool \(6,\)"),
    "no entry": ({"stem": torch.ones(0) > 0}, r"torch.bool \(0,\), expected bool \(6,\)"),
    "one for all": ({"stem": torch.tensor(True)}, r"torch.bool \(\), expected bool \(6,\)"),
    "a row": ({"stem": torch.ones(1, 6) > 0}, r"torch.bool \(1, 6\), expected bool \(6,\)"),
    "numbers": ({"stem": torch.arange(6)}, r"torch.int64 \(6,\), expected bool \(6,\)"),
    "none left": ({"stem": torch.zeros(6) > 0}, "the keep mask of 'stem' leaves no channel"),
    "of a layer, not a group": ({"b": torch.arange(6) > 2}, "unknown channel group 'b'"),
}  # fmt: skip


@pytest.mark.parametrize("mask", [[True] * 5 + [False], None, 3], ids=["list", "nothing", "number"])
def test_a_mask_that_is_no_tensor_is_refused(mask: Any) -> None:
    model = seeded(ResNet)
    groups = channel_groups(model, images())
    everything = Everything(model)
    try:
        with pytest.raises(UsageError, match="'stem'") as raised:
            cut(model, {"stem": mask}, groups)
    finally:
        everything.assert_as_before()
    assert_one_line(raised)


@pytest.mark.parametrize("first", [{}, {"c": torch.arange(7) > 2, "e": torch.arange(9) > 4}])
@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_mask_that_makes_no_sense_changes_nothing(case: str, first: dict[str, Tensor]) -> None:
    keep, words = BAD_MASKS[case]
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    mapping = snapshot(model)
    everything = Everything(model, optimizer, [mapping])
    with pytest.raises(UsageError, match=words) as raised:
        cut(model, {**first, **keep}, groups, optimizer=optimizer, companions=[mapping])
    assert_one_line(raised)
    everything.assert_as_before()


def test_a_group_without_an_exact_cut_is_refused_with_its_reason() -> None:
    model = Net(lambda s, x: s.b(s.n(s.a(x))), a=nn.Conv2d(3, 6, 1), n=nn.GroupNorm(2, 6), b=nn.Conv2d(6, 4, 1))
    groups = channel_groups(model, images(), protect=["b"])
    everything = Everything(model)
    for name in groups:
        keep = torch.arange(groups[name].channels) > 0
        with pytest.raises(UsageError, match=f"group '{name}' is protected") as raised:
            cut(model, {name: keep}, groups)
        assert str(groups[name].protected) in str(raised.value)
        assert_one_line(raised)
    everything.assert_as_before()


def test_groups_of_another_network_are_refused() -> None:
    model, optimizer = used(ConvNet)
    groups = channel_groups(seeded(ResNet), images())
    everything = Everything(model, optimizer)
    with pytest.raises(UsageError, match="traced on another one") as raised:
        cut(model, random_keep(groups), groups, optimizer)
    assert_one_line(raised)
    everything.assert_as_before()


# a cut that fails half-way


def odd_state(model: Any, optimizer: torch.optim.Optimizer, companions: list[Any]) -> None:
    """Like Adafactor's rows: the last layer's, so that all others are planned by then."""
    optimizer.state[model.d.weight]["row"] = torch.ones(5)


def odd_mapping(model: Any, optimizer: torch.optim.Optimizer, companions: list[Any]) -> None:
    companions.append({"stem.weight": model.stem.weight.detach().clone(), "d.weight": torch.ones(5, 8)})


def odd_twin(model: nn.Module, optimizer: torch.optim.Optimizer, companions: list[Any]) -> None:
    twin = copy.deepcopy(model)
    twin.d = nn.Linear(8, 5)
    companions.append(twin)


def twin_without_a_norm(model: nn.Module, optimizer: torch.optim.Optimizer, companions: list[Any]) -> None:
    twin = copy.deepcopy(model)
    twin.ns = nn.Identity()
    companions.append(twin)


def odd_average(model: nn.Module, optimizer: torch.optim.Optimizer, companions: list[Any]) -> None:
    average = torch.optim.swa_utils.AveragedModel(model)
    average.module.d = nn.Linear(8, 5)
    companions.append(average)


HALFWAY: dict[Callable[[Any, torch.optim.Optimizer, list[Any]], None], str] = {
    odd_state: r"SGD's state 'row' of 'd.weight' has shape \(5,\), unlike its parameter \(5, 9\)",
    odd_mapping: r"companion: 'd.weight' has shape \(5, 8\), the model's has \(5, 9\)",
    odd_twin: r"companion ResNet: 'd.weight' has shape \(5, 8\), unlike the model's",
    twin_without_a_norm: r"companion ResNet: 'ns.[a-z_]+' is missing",
    odd_average: r"'d.weight' has shape \(5, 8\), unlike the model's",
}


@pytest.mark.parametrize("spoil", HALFWAY, ids=lambda spoil: spoil.__name__)
def test_a_cut_that_cannot_be_finished_is_not_begun(
    spoil: Callable[[Any, torch.optim.Optimizer, list[Any]], None],
) -> None:
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    good, twin = snapshot(model), copy.deepcopy(model)
    companions: list[Any] = [good, twin]
    spoil(model, optimizer, companions)
    everything = [Everything(model, optimizer, [one for one in companions if isinstance(one, dict)])]
    everything += [Everything(one) for one in companions if isinstance(one, nn.Module)]
    with pytest.raises(UsageError, match=HALFWAY[spoil]) as raised:
        cut(model, random_keep(groups), groups, optimizer, companions)
    assert_one_line(raised)
    for one in everything:
        one.assert_as_before()


@pytest.mark.parametrize("call", [0, 1, 7, 20, 45, 70])
def test_memory_that_runs_out_half_way_changes_nothing(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    mapping, twin = snapshot(model), copy.deepcopy(model)
    everything = [Everything(model, optimizer, [mapping]), Everything(twin)]
    calls, shrink = [0], cutting.shrink

    def shrink_until(*given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > call:
            raise torch.OutOfMemoryError("no memory")
        return shrink(*given)

    monkeypatch.setattr(cutting, "shrink", shrink_until)
    with pytest.raises(torch.OutOfMemoryError):
        cut(model, random_keep(groups), groups, optimizer, [mapping, twin])
    for one in everything:
        one.assert_as_before()


def test_a_companion_that_is_read_only_changes_nothing() -> None:
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    mapping: Any = MappingProxyType(snapshot(model))
    everything = Everything(model, optimizer, [mapping])
    with pytest.raises((UsageError, TypeError)):
        cut(model, random_keep(groups), groups, optimizer, [mapping])
    everything.assert_as_before()


WRONG_KIND: dict[str, Callable[[nn.Module], Any]] = {
    "a network not in a list": copy.deepcopy,
    "a mapping not in a list": snapshot,
    "no companion": lambda model: [None],
    "a value that is no tensor": lambda model: [{"stem.weight": 3}],
    "a list of tensors": lambda model: [list(model.parameters())],
}


@pytest.mark.parametrize("case", WRONG_KIND)
def test_a_companion_of_the_wrong_kind_is_refused(case: str) -> None:
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    companions = WRONG_KIND[case](model)
    everything = Everything(model, optimizer)
    with pytest.raises(UsageError, match="companion") as raised:
        cut(model, random_keep(groups), groups, optimizer, companions)
    assert_one_line(raised)
    everything.assert_as_before()


GIVEN_TWICE: dict[str, Callable[[nn.Module], list[Any]]] = {
    "mapping": lambda model: [snapshot(model)] * 2,
    "twin": lambda model: [copy.deepcopy(model)] * 2,
    "average and its network": lambda model: [(one := torch.optim.swa_utils.AveragedModel(model)), one.module],
    "the model itself": lambda model: [model],
}


@pytest.mark.parametrize("kind", GIVEN_TWICE)
def test_a_companion_that_is_given_twice_is_cut_once(kind: str) -> None:
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    keep = random_keep(groups)
    companions = GIVEN_TWICE[kind](model)
    after = cut(model, keep, groups, optimizer, companions)
    for one in companions:
        if isinstance(one, nn.Module):
            inner = getattr(one, "module", one)
            assert lineage_of(inner).kept["stem.weight", 0].tolist() == keep["stem"].nonzero().flatten().tolist()
            assert inner(images()).shape == (4, 5)
        tensors = one if isinstance(one, dict) else dict(getattr(one, "module", one).named_parameters())
        assert all(tensors[name].shape == parameter.shape for name, parameter in model.named_parameters())
    cut(model, random_keep(after, seed=2), after, optimizer, companions)


def test_after_an_error_the_same_cut_works() -> None:
    model, optimizer = used(ResNet)
    groups = channel_groups(model, images())
    keep = random_keep(groups)
    other, held = copy.deepcopy((model, optimizer))
    with pytest.raises(UsageError):
        cut(model, keep, groups, optimizer, [{"d.weight": torch.ones(1)}])
    cut(model, keep, groups, optimizer)
    cut(other, keep, groups, held)
    assert same(snapshot(model), snapshot(other))
    one, two = ([optimizer.state[p] for p in model.parameters()], [held.state[p] for p in other.parameters()])
    assert str(one) == str(two)


def meta() -> nn.Module:
    with torch.device("meta"):
        return ConvNet()


PAIR = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a name for a model": (lambda: prune("ResNet18", example_input=images()), "model must be a torch.nn.Module"),
    "a lazy layer": (lambda: channel_groups(nn.Sequential(nn.LazyConv2d(8, 3)), images()), "run the network once"),
    "a network on meta": (lambda: channel_groups(meta(), images().to("meta")), "'a.weight' is on the meta device"),
    "no names to protect": (
        lambda: prune(ConvNet(), "ChannelNorm", example_input=images(), protect=None),
        "protect .*got None",
    ),
    "batches that are a number": (lambda: prune(ConvNet(), batches=3), "batches .* pairs .*, got int"),
    "batches that are one": (lambda: prune(ConvNet(), batches=PAIR), "batch 0 is Tensor"),
    "a loss that is a word": (lambda: prune(ConvNet(), batches=[PAIR], loss="mse"), "loss .* function .*'mse'"),
    "no mask": (lambda: cut(ConvNet(), None, {}), "keep .*mapping.* got NoneType"),
    "no groups": (lambda: cut(ConvNet(), {}, None), "groups .*mapping.* got NoneType"),
    "no scores": (lambda: select(None, 0.5), "scores must be a mapping"),
    "a share in words": (lambda: select({"a": torch.rand(3)}, "half"), "sparsity must be a number .*, got 'half'"),
    "nothing to measure with": (lambda: measure(ConvNet(), None), "example_input is a batch"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_an_argument_of_the_wrong_kind_is_named_in_one_line(case: str) -> None:
    call, words = MISTAKES[case]
    with pytest.raises(UsageError, match=words) as raised:
        call()
    assert_one_line(raised)


def test_one_name_to_protect_need_not_be_a_list() -> None:
    assert channel_groups(ConvNet(), images(), protect="a")["a"].protected == "protected by name: a"
    model = ConvNet()
    prune(model, "Magnitude", 0.9, example_input=images(), protect="a")
    assert bool(model.a.weight.all())


class Marked(nn.Linear):
    """A layer of a user's own, whose attributes follow by an adapter."""


class Stubborn(dict[str, Tensor]):
    """A mapping with an entry that is never changed."""

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        if name == "1.weight":
            raise ValueError("this entry stays")
        super().__setitem__(name, tensor)


def in_training() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), Marked(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_an_adapter_that_fails_half_way_undoes_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: Any, kept: Any) -> None:
        if module.weight.shape[0] == 5:
            raise ValueError("five of them cannot be")
        module.out_features, module.in_features = module.weight.shape

    model, optimizer = in_training()
    groups = channel_groups(model, torch.randn(2, 6))
    monkeypatch.setattr(base, "_ADAPTERS", {**base._ADAPTERS, Marked: refuse})
    twin = copy.deepcopy(model)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    everything, of_twin = Everything(model, optimizer, [average]), Everything(twin)
    keep = {"0": torch.arange(12) % 3 > 0, "3": torch.arange(8) < 5}
    with pytest.raises(ValueError, match="five of them"):
        cut(model, keep, groups, optimizer, [average, twin])
    everything.assert_as_before()
    of_twin.assert_as_before()
    cut(model, {"3": torch.arange(8) < 4}, groups, optimizer, [average, twin])
    assert model[3].weight.shape == twin[3].weight.shape == average["3.weight"].shape == (4, 12)


def test_a_mapping_that_refuses_an_entry_undoes_the_cut() -> None:
    model, optimizer = in_training()
    groups = channel_groups(model, torch.randn(2, 6))
    own = Stubborn({name: tensor.clone() for name, tensor in model.state_dict().items()})
    everything = Everything(model, optimizer)
    before = {name: id(tensor) for name, tensor in own.items()}
    with pytest.raises(ValueError, match="this entry stays"):
        cut(model, {"0": torch.arange(12) % 3 > 0}, groups, optimizer, [own])
    everything.assert_as_before()
    assert {name: id(own[name]) for name in before} == before


def test_names_with_a_prefix_in_a_companion_are_told_of() -> None:
    model, _ = in_training()
    groups = channel_groups(model, torch.randn(2, 6))
    average = torch.optim.swa_utils.AveragedModel(model).state_dict()
    with pytest.raises(UsageError, match=r"'module\.0\.weight' .*'0\.weight' .*'module\.'") as raised:
        cut(model, {"0": torch.arange(12) > 3}, groups, companions=[average])
    assert_one_line(raised)
    assert model[0].out_features == 12


def test_hooks_and_the_kind_of_a_parameter_outlive_a_cut() -> None:
    class Own(nn.Parameter):
        pass

    model, _ = in_training()
    model[0].weight = Own(model[0].weight.detach().clone())
    heard: list[str] = []
    model[0].weight.register_hook(lambda grad: heard.append(f"gradient {tuple(grad.shape)}"))
    model[0].weight.register_post_accumulate_grad_hook(lambda one: heard.append(f"added {tuple(one.shape)}"))
    cut(model, {"0": torch.arange(12) > 3}, channel_groups(model, torch.randn(2, 6)))
    assert type(model[0].weight) is Own
    heard.clear()
    model(torch.randn(4, 6)).sum().backward()
    assert heard == ["gradient (8, 6)", "added (8, 6)"]


SELECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "floor is a word": ({"floor": "x"}, "floor must be a whole number >= 0"),
    "floor is half": ({"floor": 1.5}, "floor must be a whole number >= 0"),
    "floor below zero": ({"floor": -1}, "floor must be a whole number >= 0"),
    "floor of one name is a word": ({"floor": {"a": "x"}}, "floor of 'a' must be a whole number >= 0"),
    "gone is a word": ({"gone": {"a": "q"}}, "gone of 'a' must be a whole number >= 0, got 'q'"),
    "gone is a number": ({"gone": 3}, "gone must be a mapping"),
    "a mask that is a list": ({"current": {"a": [1, 1, 1, 1]}}, "the mask of 'a' is list, expected a tensor"),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_what_select_cannot_use_is_named_in_one_line(case: str) -> None:
    arguments, message = SELECTIONS[case]
    with pytest.raises(UsageError, match=message) as raised:
        select({"a": torch.arange(4.0)}, 0.5, **arguments)
    assert_one_line(raised)


def test_cut_refuses_groups_of_its_own_making() -> None:
    with pytest.raises(UsageError, match="channel_groups, got int for '0'"):
        cut(in_training()[0], {"0": torch.arange(12) > 3}, {"0": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize("given", [{"x": images()}, (images(), images())], ids=["mapping", "pair"])
def test_prune_says_what_an_example_is(given: Any) -> None:
    for arguments in ({"example_input": given}, {"batches": [(given, torch.zeros(4, dtype=torch.int64))]}):
        with pytest.raises(UsageError, match="example_input is a batch, one tensor .*; got (dict|tuple)"):
            prune(ConvNet(), "ChannelNorm", 0.5, **arguments)
