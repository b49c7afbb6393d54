"""Weight masks: buffers of the model that hold pruned weights at zero, at the cost of one fused call per step."""

from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.framework.network.layers import prunable_weights, tensor_name
from secateur.utils.errors import UsageError

PREFIX = "mask_of_"


class Masks(Mapping[str, Tensor]):
    """Mapping of the masks of a model: parameter name -> 0/1 tensor of the parameter's shape and dtype.

    A mask is a non-persistent buffer of the module that has the parameter: it moves between devices and is copied
    with the model, and it is not part of `state_dict`, whose names do not change (`save_model` writes masks as
    packed bits). A `Masks` is a view of the model's masks; any number of views may exist.

    Args:
        model: The network.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import Masks
        >>> model = nn.Linear(4, 1, bias=False)
        >>> masks = Masks(model)
        >>> masks.hold({"weight": torch.tensor([[True, False, True, False]])})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> detach = masks.attach(optimizer)
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight != 0).tolist(), masks.sparsity
        ([[True, False, True, False]], 0.5)
    """

    #: the number of changes: of masks added to or removed from any model
    _changes: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        #: modules with a mask, and the masked attribute, as of change number `_walked`
        self._places: list[tuple[nn.Module, str]] = []
        self._walked = -1

    def _masked(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Yield the name of each masked parameter, its module and its attribute."""
        for module_name, module in self._model.named_modules():
            for buffer in module._buffers:
                if buffer.startswith(PREFIX):
                    attribute = buffer.removeprefix(PREFIX)
                    yield tensor_name(module_name, attribute), module, attribute

    def _buffers(self) -> dict[str, Tensor]:
        return {name: module.get_buffer(PREFIX + attribute) for name, module, attribute in self._masked()}

    def __getitem__(self, name: str) -> Tensor:
        return self._buffers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers())

    def __len__(self) -> int:
        return len(self._buffers())

    def items(self) -> ItemsView[str, Tensor]:
        return self._buffers().items()  # one walk over the modules, not one for each name

    def hold(self, keep: Mapping[str, Tensor]) -> None:
        """Mask parameters: zero the entries that are False or 0 in `keep`, and hold them at zero.

        The new masks are multiplied with earlier ones, so that masked entries remain masked.

        Args:
            keep: Parameter name -> mask of the parameter's shape, bool or 0/1.

        Raises:
            UsageError: For an unknown parameter or a mask of another shape.
        """
        parameters = dict(self._model.named_parameters())
        for name, mask in keep.items():
            if name not in parameters:
                raise UsageError(f"the model has no parameter '{name}' to mask")
            if mask.shape != parameters[name].shape:
                raise UsageError(
                    f"the mask of '{name}' has shape {tuple(mask.shape)}, expected {tuple(parameters[name].shape)}"
                )
        before = self._buffers()
        for name, mask in keep.items():
            # in the memory format of the parameter, or applying the mask would be slower
            value = torch.zeros_like(parameters[name], requires_grad=False).copy_(mask != 0)
            if name in before:
                value = value * before[name]
            module_name, _, attribute = name.rpartition(".")
            self._model.get_submodule(module_name).register_buffer(PREFIX + attribute, value, persistent=False)
        Masks._changes += 1
        self.apply()

    def drop(self) -> None:
        """Remove all masks. The masked entries are zero until they are changed."""
        for _, module, attribute in list(self._masked()):
            delattr(module, PREFIX + attribute)
        Masks._changes += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the masked entries. Call this after each optimizer step, unless `attach` does it."""
        parameters, masks = self._paired()
        if masks:
            torch._foreach_mul_(parameters, masks)

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Zero the gradients of masked entries, so that gradient clipping ignores them."""
        parameters, masks = self._paired()
        pairs = [(p.grad, m) for p, m in zip(parameters, masks, strict=True) if p.grad is not None]
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [mask for _, mask in pairs])

    def attach(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Apply the masks after every step of an optimizer, by a step post-hook.

        A second call for the same optimizer and model has no effect, so that repeated pruning adds no overhead.

        Args:
            optimizer: The optimizer of the masked parameters.

        Returns:
            A function without arguments that removes the hook.
        """
        hooks = optimizer._optimizer_step_post_hooks
        for key, hook in hooks.items():
            masks = getattr(hook, "__self__", None)
            if isinstance(masks, Masks) and masks._model is self._model:
                handle = RemovableHandle(hooks)
                handle.id = key
                return handle.remove
        return optimizer.register_step_post_hook(self._after_step).remove

    def _after_step(self, *_: Any) -> None:
        self.apply()

    def _paired(self) -> tuple[list[Tensor], list[Tensor]]:
        # A cut replaces parameters and masks, but not their modules. The modules are collected again only if masks
        # were added or removed, since this takes as long as applying the masks of a small network.
        if self._walked != Masks._changes:
            self._places = [(module, attribute) for _, module, attribute in self._masked()]
            self._walked = Masks._changes
        parameters = [getattr(module, attribute) for module, attribute in self._places]
        return parameters, [getattr(module, PREFIX + attribute) for module, attribute in self._places]

    @property
    def sparsity(self) -> float:
        """Share of the present prunable weights, cut ones excluded, that the masks hold at zero."""
        weights = prunable_weights(self._model)
        held = sum(int((mask == 0).sum()) for name, mask in self.items() if name in weights)
        return held / max(1, sum(weight.numel() for weight in weights.values()))

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.sparsity:.2%} of the prunable weights held at zero)"
