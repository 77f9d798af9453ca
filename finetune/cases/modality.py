"""The modality of each channel: as configured, as the data set says, or by the channel's name."""

from collections.abc import Sequence

from scanfoundry.configs.errors import UserError

_NAMES = {
    "ct": "ct cbct cta ctp ncct cect",
    "mr": "mr mri t1 t1w t1c t1ce t1cd t1gd t1n t1post t2 t2w t2f t2star flair t2flair pd pdw dwi adc swi hbv tof",
    "pt": "pt pet suv",
    "us": "us ultrasound",
    "xr": "xr xray x-ray",
}
_BY_NAME = {name: modality for modality, names in _NAMES.items() for name in names.split()}


def modality_named(name: str) -> str:
    """The modality that a channel's name stands for ('T1w' is 'mr'); '' where it stands for none."""
    return _BY_NAME.get(name.strip().lower(), "")


def modalities_of(channels: Sequence[str], found: Sequence[str], given: str | dict[str, str] | None) -> list[str]:
    """The modality of each channel.

    Args:
        channels: their names.
        found: what the data set says of each; empty where it says nothing, and the name decides.
        given: what the user says, of all channels or by name; it comes first.

    Raises:
        UserError: nothing says what a channel is, or `given` names a channel that is not there.
    """
    if isinstance(given, str):
        return [given.lower()] * len(channels)
    by_name = given or {}
    if unknown := sorted(set(by_name) - set(channels)):
        raise UserError(f"data.modality names the channel '{unknown[0]}'; there are: {', '.join(channels)}")
    chosen = [
        by_name.get(name, "").lower() or known or modality_named(name)
        for name, known in zip(channels, found, strict=True)
    ]
    if "" in chosen:
        name = channels[chosen.index("")]
        raise UserError(f"nothing tells the modality of the channel '{name}': set data.modality (ct, mr, us, xr, ...)")
    return chosen
