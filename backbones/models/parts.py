"""A model's weights as named parts: `encoder` always, `decoder` and `head` where they were trained.

In a file every name begins with that of its part: `encoder.stages.0...`, `decoder.ups.0...`, `head.heads.0...`.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from scanfoundry.backbones.layers.segmentation import PARTS, Part

Parts = dict[Part, dict[str, Tensor]]


class HasParts(Protocol):
    """A network that knows which part each of its weights belongs to."""

    def part_of(self, name: str) -> tuple[Part, str]:
        """The part of a weight of the state dict, and its name within the part."""


def split(network: HasParts, state_dict: Mapping[str, Tensor]) -> Parts:
    """A network's state dict as parts, encoder first; a part without weights is left out."""
    found: Parts = {part: {} for part in PARTS}
    for name, value in state_dict.items():
        part, own = network.part_of(name)
        found[part][own] = value
    return {part: weights for part, weights in found.items() if weights}


def joined(network: HasParts, names: Mapping[str, object], parts: Parts) -> dict[str, Tensor]:
    """Parts as a state dict of a network; what they lack is left out.

    Args:
        network: whose names are wanted.
        names: the names of its state dict.
        parts: as `split` gave them.
    """
    places = {name: network.part_of(name) for name in names}
    return {name: parts[part][own] for name, (part, own) in places.items() if own in parts.get(part, {})}


def to_file(parts: Parts) -> dict[str, Tensor]:
    """The tensors of a file."""
    return {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}


def from_file(tensors: Mapping[str, Tensor]) -> Parts:
    """The parts in a file.

    Raises:
        ValueError: a tensor is of no part, or there is no encoder.
    """
    found: Parts = {part: {} for part in PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part not in PARTS:
            raise ValueError(f"its tensor {key} is of no part ({', '.join(PARTS)})")
        found[part][name] = value
    if not found["encoder"]:
        raise ValueError("it has no encoder")
    return {part: weights for part, weights in found.items() if weights}
