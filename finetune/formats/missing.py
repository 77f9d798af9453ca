"""Channels that some cases lack."""

from collections.abc import Sequence

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.formats.assemble import LabelledItem


def complete(items: Sequence[LabelledItem], channels: Sequence[str], allowed: bool, where: str) -> list[LabelledItem]:
    """`items` as they are; UserError, with the count for each channel, where some lack channels and must not."""
    lacking = {
        name: sum(item.images[i] is None for item in items)
        for i, name in enumerate(channels)
        if any(item.images[i] is None for item in items)
    }
    if lacking and not allowed:
        counts = ", ".join(f"{count} lack '{name}'" for name, count in lacking.items())
        raise UserError(f"of {len(items)} cases in {where} {counts}: set data.allow_missing=true, or take them out")
    return list(items)
