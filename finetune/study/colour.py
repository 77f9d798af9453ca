"""How many channels a network gets of images in colour."""

from scanfoundry.configs.errors import UserError

COLOURS = 3


def input_channels(colour: bool | None, stated: int, coloured: bool, model: str) -> tuple[int, str]:
    """The channels of the network's input, and what to tell the user of them.

    Args:
        colour: `data.colour`, None where nothing was said.
        stated: the channels of the backbone that was asked for, or of the model.
        coloured: whether most training images are in colour.
        model: what the network starts or learns from, "checkpoint" or "teacher"; empty where there is none.

    Raises:
        UserError: the choice contradicts the images or the backbone.
    """
    if colour and not coloured:
        raise UserError("data.colour=true, but most training images are grey; leave it out")
    if colour is False and stated > 1:
        raise UserError(f"data.colour=false, but the network takes {stated} channels; leave one of the two out")
    if colour:
        return COLOURS, ""
    if not coloured or stated > 1 or colour is False:
        return stated, ""
    if model:
        other = "; data.colour=true keeps the colours" if model == "checkpoint" else ""
        return stated, f"the images are in colour, the {model} takes them as grey{other}"
    return COLOURS, "the images are in colour: the network takes red, green and blue (data.colour=false: grey)"
