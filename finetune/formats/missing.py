"""Channels that some cases lack."""

from collections.abc import Sequence

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.formats.assemble import LabelledItem


def complete(items: Sequence[LabelledItem], channels: Sequence[str], allowed: bool, where: str) -> list[LabelledItem]:
    """The items as they are.

    Args:
        items: the cases.
        channels: their names.
        allowed: whether channels may be missing.
        where: the data set, for messages.

    Raises:
        UserError: some lack channels and must not; the message counts them by channel.
    """
    lacking = {
        name: sum(item.images[i] is None for item in items)
        for i, name in enumerate(channels)
        if any(item.images[i] is None for item in items)
    }
    if lacking and not allowed:
        counts = ", ".join(f"{count} lack '{name}'" for name, count in lacking.items())
        raise UserError(f"of {len(items)} cases in {where} {counts}: set data.allow_missing=true, or take them out")
    return list(items)
