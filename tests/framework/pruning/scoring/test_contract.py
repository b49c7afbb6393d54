"""Criterions of users are held to the contract: what a method changes is restored, and an error names it."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import BaseTorchDispatchMode

from secateur import Criterion, Masks, prune
from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.model_state import TABLES
from secateur.framework.plugins.registry import build, registry
from secateur.framework.pruning.scoring.contract import held_to_contract, is_shipped
from secateur.framework.pruning.scoring.process_state import ProcessState
from secateur.utils.errors import RunError, UsageError
from tests.networks import ConvNet, images, same, seeded, snapshot

Change = Callable[[Any], object]


class Changing(Criterion):
    """Magnitude that changes something in one of its methods."""

    granularity = "weight"

    def __init__(self, *, change: Change, method: str = "score", error: BaseException | None = None) -> None:
        super().__init__(change=change, method=method, error=error)
        self.change, self.method, self.error = change, method, error

    def _do(self, method: str, model: nn.Module) -> None:
        if method == self.method:
            self.change(model)
            if self.error is not None:
                raise self.error

    def check(self, model: nn.Module) -> None:
        self._do("check", model)

    def start(self, model: nn.Module) -> None:
        self._do("start", model)

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        self._do("score", model)
        return {name: weight.detach().abs() for name, weight in prunable_weights(model).items()}


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.a.weight.mul_(2)


def backward(model: Any) -> None:
    F.cross_entropy(model(images()), torch.arange(4)).backward()


def add_gradient(model: Any) -> None:
    model.a.weight.grad.add_(1)


CHANGES: dict[str, tuple[Change, str]] = {
    "weights in place": (in_place, "values of 'a.weight'"),
    "weights by .data": (lambda m: m.a.weight.data.mul_(2), "values of 'a.weight'"),
    "a NaN by .data": (lambda m: m.a.bias.data.fill_(float("nan")), "values of 'a.bias'"),
    "the sign of a zero": (lambda m: m.na.running_mean.data.mul_(-1), "values of 'na.running_mean'"),
    "other memory": (lambda m: setattr(m.b.weight, "data", m.b.weight.data.clone()), "values of 'b.weight'"),
    "a transposed view": (lambda m: setattr(m.a.weight, "data", m.a.weight.data.mT), "values of 'a.weight'"),
    "another dtype": (lambda m: m.double(), "values of"),
    "a buffer": (lambda m: m.na.running_var.add_(1), "values of 'na.running_var'"),
    "a forward pass in training mode": (lambda m: m(images()), "values of 'na.running_mean'"),
    "a flag": (lambda m: m.b.weight.requires_grad_(False), "requires_grad of 'b.weight'"),
    "gradients": (backward, "gradients of"),
    "a gradient in place": (add_gradient, "gradients of 'a.weight'"),
    "a gradient removed": (lambda m: setattr(m.a.weight, "grad", None), "gradients of 'a.weight'"),
    "the mode": (lambda m: m.eval(), "mode"),
    "a forward hook": (lambda m: m.a.register_forward_hook(lambda *_: None), "hooks of 'a'"),
    "a forward hook before": (lambda m: m.a.register_forward_pre_hook(lambda *_: None), "hooks of 'a'"),
    "a backward hook": (lambda m: m.a.register_full_backward_hook(lambda *_: None), "hooks of 'a'"),
    "a hook of a tensor": (lambda m: m.a.weight.register_hook(lambda g: g), "hooks of 'a.weight'"),
    "a hook after gradients": (
        lambda m: m.a.weight.register_post_accumulate_grad_hook(lambda p: None), "hooks of 'a.weight'"
    ),
    "a global hook": (
        lambda m: nn.modules.module.register_module_forward_hook(lambda *_: None), "global hooks"
    ),
    "a parameter replaced": (
        lambda m: setattr(m.a, "weight", nn.Parameter(m.a.weight.detach().clone())), "tensors themselves of 'a'"
    ),
    "a buffer added": (lambda m: m.a.register_buffer("more", torch.ones(1)), "tensors themselves of 'a'"),
    "a module replaced": (lambda m: setattr(m, "na", nn.Identity()), "submodules"),
    "a module added": (lambda m: m.add_module("more", nn.ReLU()), "submodules"),
    "a module removed": (lambda m: delattr(m, "na"), "submodules"),
    "an attribute": (lambda m: setattr(m.na, "eps", 1.0), "attributes of 'na.eps'"),
    "an attribute of the user's": (lambda m: setattr(m, "scale", 2.0), "attributes of 'scale'"),
    "another forward": (lambda m: setattr(m.a, "forward", lambda x: x), "attributes of 'a.forward'"),
    "the class": (lambda m: setattr(m.a, "__class__", type("Other", (nn.Conv2d,), {})), "the class of 'a'"),
    "a hook of all optimizers": (
        lambda m: register_optimizer_step_post_hook(lambda *_: None), "global hooks"
    ),
    "a device that was entered": (lambda m: torch.device("meta").__enter__(), "active modes"),
    "a function mode": (lambda m: BaseTorchFunctionMode().__enter__(), "active modes"),
    "a dispatch mode": (lambda m: BaseTorchDispatchMode().__enter__(), "active modes"),
    "hooks of saved tensors": (lambda m: saved_tensors_hooks(id, id).__enter__(), "hooks of saved tensors"),
    "oneDNN": (lambda m: torch._C._set_mkldnn_enabled(False), "oneDNN"),
    "matrix products": (lambda m: torch.set_float32_matmul_precision("medium"), "precision of matrix products"),
    "the default dtype": (lambda m: torch.set_default_dtype(torch.float64), "default dtype"),
    "the default device": (lambda m: torch.set_default_device("meta"), "default device"),
    "grad mode": (lambda m: torch.set_grad_enabled(False), "grad mode"),
    "autocast": (lambda m: torch.set_autocast_enabled("cpu", True), "autocast"),
    "determinism": (lambda m: torch.use_deterministic_algorithms(True, warn_only=True), "deterministic"),
    "cuDNN": (lambda m: setattr(torch.backends.cudnn, "benchmark", True), "cuDNN"),
    "threads": (lambda m: torch.set_num_threads(2), "number of threads"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """A failed test must not change those that follow."""
    state = ProcessState()
    yield
    state.restore()


def net() -> Any:
    model: Any = seeded(ConvNet).train()
    model.scale = 1.0
    for parameter in (model.a.weight, model.b.weight):
        parameter.grad = torch.ones_like(parameter)
    return model


def facts(model: nn.Module) -> dict[str, Any]:
    """Everything that must be the same afterwards."""
    modules = dict(model.named_modules())
    hooks = [key for key in TABLES if "hook" in key]
    return {
        "tensors": {name: id(tensor) for name, tensor in model.named_parameters()}
        | {name: id(tensor) for name, tensor in model.named_buffers()},
        "memory": {name: tensor.data_ptr() for name, tensor in model.named_parameters()},
        "flags": {name: tensor.requires_grad for name, tensor in model.named_parameters()},
        "hooks": {name: len(tensor._backward_hooks or ()) for name, tensor in model.named_parameters()},
        "gradients": {
            name: None if (grad := tensor.grad) is None else (grad.dtype, grad.tolist())
            for name, tensor in model.named_parameters()
        },
        "modules": {name: (type(module), module.training) for name, module in modules.items()},
        "tables": {name: [list(vars(module)[key]) for key in hooks] for name, module in modules.items()},
        "attributes": {
            name: sorted(vars(module).keys() - {"_secateur_lineage"}) for name, module in modules.items()
        },
        "settings": ProcessState()._before,
    }


@pytest.mark.parametrize("case", CHANGES)
def test_what_score_changes_is_named_and_restored(case: str) -> None:
    change, words = CHANGES[case]
    model = net()
    values, before = snapshot(model), facts(model)
    with pytest.raises(UsageError) as error:
        prune(model, Changing(change=change), 0.5, example_input=images())
    assert "Changing.score" in str(error.value) and words in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert facts(model) == before
    assert same(snapshot(model), values)
    assert (model.na.eps, model.scale) == (1e-5, 1.0)


@pytest.mark.parametrize("method", ["check", "start"])
@pytest.mark.parametrize("case", ["weights by .data", "a forward hook", "the mode", "threads"])
def test_other_methods_are_held_to_it_too(method: str, case: str) -> None:
    change, words = CHANGES[case]
    model = net()
    values, before = snapshot(model), facts(model)
    with pytest.raises(UsageError, match=f"Changing.{method} changed .*{words}"):
        prune(model, Changing(change=change, method=method), 0.5, example_input=images())
    assert facts(model) == before and same(snapshot(model), values)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("oops"), UsageError("no"), SystemExit(0), KeyboardInterrupt()]
)
def test_the_model_is_restored_when_score_raises(error: BaseException) -> None:
    model = net()
    values, before = snapshot(model), facts(model)
    expected = RunError if isinstance(error, SystemExit) else type(error)
    with pytest.raises(expected):
        prune(model, Changing(change=CHANGES["another dtype"][0], error=error), 0.5, example_input=images())
    assert facts(model) == before and same(snapshot(model), values)


def undone(model: Any) -> None:
    weight = model.a.weight.detach().clone()
    model.a.weight.data.zero_()
    model.a.weight.data.copy_(weight)


def draw(model: Any) -> None:
    torch.rand(3), random.random(), np.random.rand()


@pytest.mark.parametrize("method", ["check", "start", "score"])
@pytest.mark.parametrize("change", [undone, draw, lambda model: model.state_dict()])
def test_what_is_as_before_in_the_end_is_no_fault(change: Change, method: str) -> None:
    model, criterion = net(), Changing(change=change, method=method)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert prune(model, criterion, 0.5, example_input=images()).reached == pytest.approx(0.5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


class Counts(nn.Module):
    """A network that counts its own calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.calls, self.steps, self.scale = 0, 0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += self.training
        return self.b(self.a(x).relu()) * self.scale  # type: ignore[no-any-return]


def test_what_a_network_changes_by_itself_is_not_held_against_the_criterion() -> None:
    x = torch.randn(2, 4)
    for training in (False, True):
        prune(Counts().train(training), Changing(change=lambda model: model(x)), 0.5, example_input=x)
    model = Counts()

    def both(model: Any) -> None:
        model(x)
        model.scale = 3.0

    with pytest.raises(UsageError, match="attributes of 'scale':"):
        prune(model, Changing(change=both), 0.5, example_input=x)
    assert model.scale == 1.0


def test_shipped_criterions_are_believed_except_on_trial() -> None:
    model, criterion = net(), build("criterions", "SNIP")
    with held_to_contract(criterion, "score", model):
        model.eval()
    assert not model.training
    with (
        pytest.raises(UsageError, match="SNIP.score changed the mode"),
        held_to_contract(criterion, "score", model, always=True),
    ):
        model.train()
    assert not model.training


def test_masks_that_were_dropped_and_looked_at_hold_again() -> None:
    model = net()
    masks = Masks(model)
    masks.hold({"a.weight": torch.zeros_like(model.a.weight, dtype=torch.bool)})

    def drop(model: Any) -> None:
        Masks(model).drop()
        masks.apply()

    with pytest.raises(UsageError, match="a.weight|of 'a'"):
        prune(model, Changing(change=drop), 0.5, example_input=images())
    with torch.no_grad():
        model.a.weight.fill_(1.0)
    masks.apply()
    assert not model.a.weight.any()


@pytest.mark.parametrize("name", registry.names("criterions"))
def test_shipped_criterions_are_known_as_such(name: str) -> None:
    criterion = build("criterions", name)
    assert is_shipped(criterion)
    assert not is_shipped(type(name, (type(criterion),), {"__module__": __name__})())
    criterion.score = lambda *_: {}
    assert not is_shipped(criterion)


SCORES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "complex": (lambda w: w.to(torch.complex64), "complex64"),
    "whole numbers": (lambda w: w.long(), "int64"),
    "truth values": (lambda w: w > 0, "bool"),
    "sparse": (lambda w: w.to_sparse(), "sparse"),
    "quantized": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantized"),
    "on meta": (lambda w: w.to("meta"), "meta"),
    "a list": (lambda w: w.tolist(), "list"),
    "an array": (lambda w: w.numpy(), "ndarray"),
}


class Given(Criterion):
    """Scores made by a function of each weight, or of all of them."""

    granularity = "weight"

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> Any:
        weights = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
        if hasattr(self, "whole"):
            return self.whole(weights)
        return {name: self.each(weight) for name, weight in weights.items()}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", SCORES)
def test_scores_that_are_not_floating_point_tensors_are_refused_in_one_line(case: str) -> None:
    each, words = SCORES[case]
    model = net()
    values = snapshot(model)
    with pytest.raises(UsageError, match=f"^Given.score: 'a.weight' .*{words}") as error:
        prune(model, Given(each=each), 0.5, example_input=images())
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    assert same(snapshot(model), values)


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (lambda weights: list(weights.items()), "list"),
        (lambda weights: None, "NoneType"),
        (lambda weights: weights | {3: torch.ones(2)}, "int"),
        (lambda weights: {torch.ones(9): 1} | weights, "Tensor"),
    ],
)
def test_scores_are_a_mapping_from_names(whole: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^Given.score .*{words}") as error:
        prune(net(), Given(whole=whole), 0.5, example_input=images())
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision_and_with_a_graph_are_taken(dtype: torch.dtype) -> None:
    report = prune(net(), Given(each=lambda w: w.to(dtype).requires_grad_()), 0.5, example_input=images())
    assert report.reached == pytest.approx(0.5, abs=1e-3)
