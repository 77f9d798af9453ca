"""The layers of an encoder, by which a decay of learning rates counts (ELECTRA, BEiT and MAE)."""

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError


def layers_of(encoder: Encoder) -> tuple[dict[int, int], int]:
    """Count the layers of an encoder from its input.

    A block of `Encoder.block_modules` is a layer. What is registered before the first block (patch embedding, tokens,
    positions) is layer 0, and what is registered behind the last one (the final norm) is the last layer. Anything
    between two blocks belongs to the one that follows.

    Returns:
        The layer by `id` of a parameter, and the number of the last layer: the number of blocks, plus one.
    """
    blocks = list(encoder.block_modules())
    inside = {id(weight): number for number, block in enumerate(blocks, start=1) for weight in block.parameters()}
    found: dict[int, int] = {}
    last, waiting, reached = len(blocks) + 1, [0] * 0, False
    for weight in encoder.parameters():
        if (layer := inside.get(id(weight))) is None:
            waiting.append(id(weight))
            continue
        found |= dict.fromkeys(waiting, layer if reached else 0) | {id(weight): layer}
        waiting, reached = [], True
    return found | dict.fromkeys(waiting, last), last


def check_layers(encoder: Encoder, decay: float) -> None:
    """Raise UserError where rates are to decay by layers, and the encoder does not tell its layers."""
    if decay != 1 and next(encoder.block_modules(), None) is None:
        raise UserError(
            f"schedule.layer_decay counts blocks, and backbone '{encoder.config.name}' names none; "
            "leave it out, or take schedule.encoder_lr_scale"
        )
