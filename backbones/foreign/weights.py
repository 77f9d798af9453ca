"""The weights in a foreign file, and a model of ours filled with them, every key accounted for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from scanfoundry.backbones.foreign.report import Report
from scanfoundry.backbones.foreign.safe import count_tensors, read_foreign
from scanfoundry.backbones.transfer.stem import repeat_channels
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=Config)
CONTAINERS = ("state_dict", "network_weights", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


@dataclass(frozen=True)
class Weights:
    """A file's weights by key, its other keys with the reason why they are left, and what its keys began with.

    records: what else lies beside the weights' container, by key; anyone's word, of any type.
    """

    path: Path
    tensors: dict[str, Tensor]
    others: dict[str, str]
    prefix: str = ""
    records: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """A value for one key of the model: from which key of the file, and how it was adapted ('': not at all)."""

    key: str
    value: Tensor
    how: str = ""


def read_weights(path: Path, opened: Path | None = None) -> Weights:
    """The state dict in a file, wherever its writer put it; `opened` as in `read_foreign`.

    Raises:
        UserError: there is none.
    """
    content = read_foreign(path, opened)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name; give a state dict")
    state: Mapping[Any, Any] = content
    others: dict[str, str] = {}
    records: dict[str, Any] = {}
    for name in CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            state = inner
            records = {str(key): value for key, value in content.items() if key != name}
            others = {key: _why(key, value) for key, value in records.items()}
            break
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    others |= {str(key): _why(str(key), v) for key, v in state.items() if not isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights by name; its first keys are {', '.join(list(others)[:8]) or 'none'}")
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f"{path}: {key} is a sparse, quantised or empty tensor; save it as a plain one")
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(prefix + w) for key in tensors)), ""):
        prefix += wrapper
    return Weights(path, {key.removeprefix(prefix): value for key, value in tensors.items()}, others, prefix, records)


def _why(key: str, value: Any) -> str:
    count = count_tensors(value)
    kind = "state of the optimiser" if "optim" in key else "a record of the training"
    return f"{kind} ({count} tensors)" if count else kind


def fill(
    make: Callable[[], M],
    weights: Weights,
    taken: Mapping[str, Taken],
    left: Mapping[str, str],
    what: str,
    fresh: Mapping[str, str] | None = None,
    notes: tuple[str, ...] = (),
    whole: bool = False,
) -> tuple[M, Report]:
    """The model of `make`, float32, with the values taken, and the report.

    Args:
        left: why other keys of the weights are not taken.
        fresh: why the model's keys begin fresh, where it is not simply that the file has none.
        whole: whether none of the model's keys may begin fresh.

    Raises:
        UserError: a value has no place in the model, does not fit it or is not finite.
        ValueError: a key of the weights is accounted for nowhere.
    """
    if unaccounted := weights.tensors.keys() - {part.key for part in taken.values()} - left.keys():
        raise ValueError(f"{weights.path}: {sorted(unaccounted)} neither used nor left")
    with torch.device("meta"):
        expected = make().state_dict()
    values, used, adapted = {}, {}, {}
    for name, part in taken.items():
        if name not in expected:
            raise UserError(f"{weights.path}: {part.key} has no place in {what}; give the weights of that network")
        value, how = _checked(weights.path, part, expected[name].shape)
        values[name] = value
        if how:
            adapted[name] = (part.key, how)
        else:
            used[name] = part.key
    missing = {name: (fresh or {}).get(name, "not in the file") for name in expected if name not in values}
    if whole and missing:
        raise UserError(f"{weights.path} is no whole {what}: it has no {next(iter(missing))}; give the original file")
    if missing:
        model = make()
        model.load_state_dict(values, strict=False)
    else:
        with torch.device("meta"):  # neither draws nor allocates weights that are replaced at once
            model = make()
        model.load_state_dict(values, assign=True)
    if weights.prefix:
        notes = (f"every key of the file begins with '{weights.prefix}', which is dropped", *notes)
    return model, Report(weights.path.name, what, used, adapted, {**left, **weights.others}, missing, notes)


def _checked(path: Path, part: Taken, shape: torch.Size) -> tuple[Tensor, str]:
    """A copy of the value as a float32 tensor of its own, and how it differs from the file's."""
    if part.value.shape != shape:
        have, want = tuple(part.value.shape), tuple(shape)
        raise UserError(f"{path}: {part.key} is {have}, should be {want}; give matching weights")
    if not part.value.is_floating_point() or not part.value.isfinite().all():
        raise UserError(f"{path}: {part.key} holds values that are no finite numbers; the file is damaged")
    value, cast = widened(part.value.detach())
    return value.clone(memory_format=torch.contiguous_format), joined(part.how, cast)


def widened(value: Tensor) -> tuple[Tensor, str]:
    """Floating-point numbers as float32, and how ('' where they are)."""
    if value.dtype == torch.float32 or not value.is_floating_point():
        return value, ""
    return value.to(torch.float32), f"{str(value.dtype).removeprefix('torch.')} to float32"


def joined(*hows: str) -> str:
    """What was done, one after the other."""
    return "; ".join(filter(None, hows))


def chosen(name: str, given: int | None, known: int) -> int:
    """A count that the caller may give: the file's where it is None; UserError below 1."""
    if given is not None and given < 1:
        raise UserError(f"{name} is {given}; give 1 or more, or leave it out to keep the file's {known}")
    return known if given is None else given


def configured(kind: type[C], fields: Mapping[str, Any]) -> C:
    """A backbone's configuration; UserError, naming the option, where a value is not allowed."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; give an allowed value") from error


def adapt_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """Convolution weights (F, C, ...) in float32 for a number of input channels, and how ('' where they are that).

    As `stem.repeat_channels`: summed alone for one channel, repeated and divided alone from one.
    """
    weight, cast = widened(weight)
    given = weight.shape[1]
    if given == channels:
        return weight, cast
    steps = (["summed"] if given > 1 else []) + ([f"repeated and divided by {channels}"] if channels > 1 else [])
    return repeat_channels(weight, channels), joined(cast, f"input channels {given} to {channels}: {', '.join(steps)}")
