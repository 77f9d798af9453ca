"""Which weights of another model a network starts from: encoder, decoder, and the classes that both heads have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.models.description import HeadInfo
from scanfoundry.backbones.models.parts import Parts, split
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.task_parts import BACKGROUND


@dataclass(frozen=True)
class StartWeights:
    """What a network starts from: the parts of a model that are wanted, for its number of input channels."""

    parts: Parts
    head: HeadInfo | None = None  # what the part `head` predicts
    adapted: str = ""  # how encoder and decoder were changed, see `backbones.transfer.adapt`


@dataclass(frozen=True)
class Transferred:
    """What became of the parts of the model that a network started from.

    used, adapted, left: the parts by what became of them, each with a few words for people.
    names: of the network's state dict, what has its first values from that model.
    """

    used: dict[Part, str] = field(default_factory=dict)
    adapted: dict[Part, str] = field(default_factory=dict)
    left: dict[Part, str] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    def lines(self) -> list[str]:
        """One line for each part."""
        fates = (("used", self.used), ("adapted", self.adapted), ("left", self.left))
        return [f"{part} {fate}: {words}" for fate, parts in fates for part, words in parts.items()]


def transfer(adapter: Adapter[Any, Any], model: TaskModel, start: StartWeights) -> Transferred:
    """Give a network whose encoder has its weights already the decoder and the head that it starts from.

    A decoder is used where all of its weights fit. Of a head of the same task, the classes of the same name keep their
    weights; a head whose outputs are not of single classes is used where all classes are the same.

    Args:
        adapter: the task.
        model: its network.
        start: what it starts from.

    Returns:
        What became of each part.
    """
    own = split(model, model.state_dict())
    done = Transferred()
    fates, how = (done.adapted, f"; {start.adapted}") if start.adapted else (done.used, "")
    fates["encoder"] = f"all its {len(start.parts['encoder'])} weights{how}"
    names = _names(model, "encoder")
    if "decoder" in start.parts:
        given = start.parts["decoder"]
        if why := _difference(given, own.get("decoder", {})):
            done.left["decoder"] = why
        else:
            _copy(own["decoder"], given)
            fates["decoder"] = f"all its {len(given)} weights{how}"
            names |= _names(model, "decoder")
    if "head" in start.parts:
        names |= _transfer_head(adapter, model, start, own, done)
    return Transferred(done.used, done.adapted, done.left, frozenset(names))


def _difference(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Why weights do not fit, by the first that does not; nothing where they do."""
    if not own:
        return "this task's network has none"
    for name in sorted(given.keys() | own.keys()):
        if name not in given or name not in own:
            return f"it is of another kind ({name} is only in {'it' if name in given else 'the network'})"
        if given[name].shape != own[name].shape:
            return f"{name} is {tuple(given[name].shape)} in it, {tuple(own[name].shape)} in the network"
    return ""


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name, value in own.items():
        value.copy_(given[name])


def _transfer_head(
    adapter: Adapter[Any, Any], model: TaskModel, start: StartWeights, own: Parts, done: Transferred
) -> set[str]:
    """Fill the head; gives the names of what was filled."""
    head, mine, given = start.head, own.get("head", {}), start.parts["head"]
    if head is None or head.task != adapter.spec.task.name:
        done.left["head"] = f"it is of {'an unknown task' if head is None else head.task}"
        return set()
    if not head.classes:
        done.left["head"] = "its classes have no names; give them in their order as checkpoint_classes"
        return set()
    rows = adapter.head_rows()
    if rows is None:
        why = "" if head.classes == adapter.spec.classes else "its classes are others"
        if why := why or _difference(given, mine):
            done.left["head"] = why
            return set()
        _copy(mine, given)
        done.used["head"] = f"all its {len(given)} weights"
        return _names(model, "head")
    theirs = [BACKGROUND, *head.classes] if BACKGROUND in rows else head.classes
    shared = [name for name in rows if name in theirs]
    if not set(shared) - {BACKGROUND}:
        done.left["head"] = "it has no class of this task"
        return set()
    if not _copy_rows(model, mine, given, rows, theirs):
        done.left["head"] = "its layers are others"
        return set()
    fresh = [name for name in rows if name not in theirs]
    kept = ", ".join(name for name in shared if name != BACKGROUND)
    if fresh or len(rows) != len(theirs):
        done.adapted["head"] = f"kept {kept}" + (f"; fresh {', '.join(fresh)}" if fresh else "")
    else:
        done.used["head"] = f"its classes {kept}"
    return set() if fresh else _names(model, "head")  # with fresh classes it learns as a fresh one


def _names(model: TaskModel, part: Part) -> set[str]:
    return {name for name in model.state_dict() if model.part_of(name)[0] == part}


@torch.no_grad()
def _copy_rows(
    model: TaskModel,
    mine: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    rows: Sequence[str],
    theirs: Sequence[str],
) -> bool:
    """Copy weights of the head that both have, those of outputs by the outputs' names; False where they differ."""
    if mine.keys() != given.keys():
        return False
    to = torch.tensor([i for i, name in enumerate(rows) if name in theirs])
    of = torch.tensor([theirs.index(name) for name in rows if name in theirs])
    copies: list[tuple[Tensor, int, Tensor]] = []
    for name, value in mine.items():
        other, axis = given[name], model.class_axis(name)
        if value.shape[axis] == len(rows) and other.shape[axis] == len(theirs):
            if value.select(axis, 0).shape != other.select(axis, 0).shape:
                return False
            copies.append((value, axis, other))
        elif value.shape == other.shape:
            copies.append((value, -1, other))
        else:
            return False
    for value, axis, other in copies:
        if axis < 0:
            value.copy_(other)
        else:
            value.index_copy_(axis, to.to(value.device), other.index_select(axis, of).to(value))
    return True
