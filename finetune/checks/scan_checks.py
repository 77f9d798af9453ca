"""What is wrong with scans as such: grids that cannot be planned for, headers that contradict the configuration."""

from collections.abc import Sequence

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.modality import modality_named
from scanfoundry.finetune.cases.volumes import check_resampled_size, target_shape
from scanfoundry.finetune.checks.check import Checked

_STATED = ("ct", "mr", "pt", "us")


def check_grids(found: Checked, wanted: tuple[float, float, float]) -> None:
    """UserError, naming the scan, where one cannot be brought to the plan's spacing `wanted` (D, H, W) in mm."""
    for name, (d, h, w), spacing in found.grids.values():
        try:
            check_resampled_size((d, h, w), spacing, target_shape((d, h, w), spacing, wanted))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def check_modalities(found: Checked, channels: Sequence[str], modalities: Sequence[str]) -> None:
    """UserError, naming the scan, where its header says CT and the data set does not, or the other way round: CT alone
    is scaled by Hounsfield units."""
    for key, looks in found.looks.items():
        for channel, modality, look in zip(channels, modalities, looks, strict=True):
            header, stated = look.modality if look else "", modality_named(modality)
            if header in _STATED and stated in _STATED and (header == "ct") != (stated == "ct"):
                of = "" if len(channels) == 1 else f" of channel '{channel}'"
                raise UserError(
                    f"{found.grids[key][0]}: its header says {header}, data.modality{of} says {stated}: set "
                    f"data.modality={header}, or take the file out"
                )
