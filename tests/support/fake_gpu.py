"""An accelerator that is not there: tensors of its kind have a shape and no numbers, and what would wait is counted.

In a torch without CUDA, autograd refuses fake tensors of device 'cuda'. Torch's place for accelerators of others
(PrivateUse1) has no such bond, so that the device is called 'gpu' here; the code asks only whether it is the CPU.
A process that has made it keeps it: run this in a process of its own.
"""

from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "gpu"
aten = torch.ops.aten
# What reads numbers of the device, or finds the length of its result by them.
READS = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default, aten.bincount.default),
    aten.repeat_interleave.Tensor,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


def start() -> torch.device:
    """Make the device."""
    module = ModuleType(NAME)
    for name, value in {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "_is_in_bad_fork": False,
        "get_amp_supported_dtype": [torch.bfloat16, torch.float16],
    }.items():  # fmt: skip
        setattr(module, name, lambda value=value: value)
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    return torch.device(NAME, 0)


class Waits(TorchDispatchMode):
    """Counts, by name, the operations for which the host would wait until the device is done; forward and backward."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and run it; a number that is read is 1."""
        kwargs = kwargs or {}
        there = any(isinstance(each, FakeTensor) and each.device.type == NAME for each in tree_iter((args, kwargs)))
        if there and func in READS:
            self.count[str(func)] += 1
            if func is aten._local_scalar_dense.default:
                return 1
        if there and func in INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.count[f"{func} by a mask"] += 1
                elif index is not None and index.device.type == "cpu":
                    self.count[f"{func} by numbers of the host"] += 1
        if there and func is aten._to_copy.default and torch.device(kwargs.get("device") or NAME).type == "cpu":
            self.count["a copy to the host"] += 1
        if func is aten.copy_.default and args[0].device != args[1].device:
            self.count[f"copy_ from {args[1].device.type} to {args[0].device.type}"] += 1
        device = kwargs.get("device")
        if not there and device is not None and torch.device(device).type == NAME:  # a tensor made on the device
            with self._fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class FakeGPU(TorchFunctionMode):
    """Sends to fake tensors what names the device, and tells copies from pinned memory from those that wait.

    Attributes:
        waits: also counts copies to the device for which the host waits: from memory that is not pinned, or without
            `non_blocking`.
        copies: how many copies to the device did not make the host wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device, self.copies = start(), 0
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits = Waits(self._mode)

    def like(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the device as a given one is."""
        with self._mode:
            dtype = dtype or tensor.dtype
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=self.device)

    def move(self, module: torch.nn.Module) -> torch.nn.Module:
        """A module on the device meta with its parameters and buffers on this one."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, torch.nn.Parameter(self.like(parameter.detach()), parameter.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, self.like(buffer))
        return module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            pinned = args[0].detach().clone()
            pinned.in_pinned_memory = True
            return pinned
        if func in (Tensor.to, Tensor.copy_) and (target := self._target(func, args, kwargs)) is not None:
            return target
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and self._is_here(func, args, kwargs):
            self.waits.count[f"{func.__name__} on the device"] += 1
            made = torch.tensor(args[0] if func is not Tensor.new_tensor else args[1], dtype=kwargs.get("dtype"))
            return self.like(made)
        return func(*args, **kwargs)

    def _is_here(self, func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
        if func is Tensor.new_tensor and "device" not in kwargs:
            return bool(args[0].device.type == NAME)
        return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME

    def _target(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """The copy of a tensor of the host on the device; None for any other call."""
        source = args[1] if func is Tensor.copy_ else args[0]
        if not isinstance(source, Tensor) or source.device.type != "cpu" or isinstance(source, FakeTensor):
            return None
        if func is Tensor.copy_:
            if args[0].device.type != NAME:
                return None
            self._count(source, bool(kwargs.get("non_blocking")))
            return args[0].copy_(self.like(source))
        device, dtype = source.device, source.dtype
        for given in (*args[1:], *kwargs.values()):
            if isinstance(given, Tensor):
                device, dtype = given.device, given.dtype
            elif isinstance(given, torch.dtype):
                dtype = given
            elif isinstance(given, str | torch.device):
                device = torch.device(given)
        if device.type != NAME:
            return None
        self._count(source, bool(kwargs.get("non_blocking")))
        return self.like(source, dtype)

    def _count(self, source: Tensor, non_blocking: bool) -> None:
        if non_blocking and getattr(source, "in_pinned_memory", False):
            self.copies += 1
        else:
            self.waits.count["a copy to the device from memory that is not pinned"] += 1
