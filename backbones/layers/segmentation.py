"""What every network offers that segments with an encoder, and the U-shaped ones among them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Part = Literal["encoder", "decoder", "head"]
PARTS: tuple[Part, ...] = ("encoder", "decoder", "head")


class SegmentationNetwork(nn.Module, ABC):
    """An encoder, whose weights it shares, and a decoder that gives logits of every voxel.

    A subclass says in `encoder_names` and `head_names` what the names of those weights begin with; the others are the
    decoder's.
    """

    deep_supervision: bool = False
    encoder_names: ClassVar[tuple[str, ...]] = ("encoder.",)
    head_names: ClassVar[tuple[str, ...]]

    def part_of(self, name: str) -> tuple[Part, str]:
        """The part that a weight of the network's state dict belongs to, and its name within the part.

        Weights of the encoder are called as in the encoder's own state dict, the others as in the network's.
        """
        if name.startswith(self.encoder_names):
            return "encoder", name.removeprefix("encoder.")
        return ("head" if name.startswith(self.head_names) else "decoder"), name

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W) of the scans (B, C, D, H, W); with deep supervision a list, full size first.

        The coarser maps of deep supervision stay at their own resolution.
        """

    def class_axis(self, name: str) -> int:
        """The axis of a weight of the head, by its name, along which the classes lie."""
        return 0

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are the encoder's."""
        return (weight for name, weight in self.named_parameters() if self.part_of(name)[0] == "encoder")


def decode_with_skips(ups: Iterable[nn.Module], stages: Iterable[nn.Module], features: list[Tensor]) -> list[Tensor]:
    """From the deepest of an encoder's maps: bring it to the next finer one's size, put that beside it, run a stage.

    Args:
        ups: deepest first, each called with a map and the size (D, H, W) that is wanted.
        stages: deepest first, each on the maps side by side.
        features: the encoder's maps (B, F, d, h, w), finest first.

    Returns:
        The maps of all levels but the deepest, finest first.
    """
    y, decoded = features[-1], []
    for up, stage, skip in zip(ups, stages, reversed(features[:-1]), strict=True):
        y = stage(torch.cat((up(y, skip.shape[2:]), skip), dim=1))
        decoded.append(y)
    return decoded[::-1]


class UNet(SegmentationNetwork):
    """A network whose decoder takes the feature maps of all levels of its encoder."""

    @abstractmethod
    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), finest first."""

    @abstractmethod
    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """The decoder's feature maps, finest first, from those of all levels of the encoder.

        The finest has as many channels as the encoder's finest.
        """

    @abstractmethod
    def output_layers(self) -> Sequence[nn.Module]:
        """What turns each map of `decode` into logits, finest first."""

    def block_modules(self) -> Iterator[nn.Module]:
        """The decoder's blocks, deepest first, for activation checkpointing; the encoder names its own."""
        return iter(())

    def logits(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W) for scans of these features; with deep supervision those of all levels."""
        decoded, layers = self.decode(features), self.output_layers()
        if not self.deep_supervision:
            return layers[0](decoded[0])
        return [layer(y) for layer, y in zip(layers, decoded, strict=True)]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W) of the scans (B, C, D, H, W); with deep supervision a list, full size first.

        The coarser maps of deep supervision stay at their own resolution.
        """
        return self.logits(self.encode(x))

    def decoder_alone(self) -> "UNet":
        """This network without its encoder and its heads: `decode` is all that it can still do.

        What trains the decoder beside an encoder holds it so, and each weight once.
        """
        for name, _ in list(self.named_children()):
            if self.part_of(f"{name}.")[0] != "decoder":
                delattr(self, name)
        return self
