"""What an export is, as JSON: enough to run it without scanfoundry, in numbers for programs and in words for people."""

from typing import Any

from scanfoundry.finetune.cases.volumes import SPACING_TOLERANCE
from scanfoundry.finetune.export.network import INPUT, Traceable
from scanfoundry.finetune.task import Adapter, TaskModel

AXES = (
    "Arrays are (channel, D, H, W), voxels in the file's own order and orientation: of a NIfTI array (x, y, z) D, H, W "
    "are z, y, x (its transpose); of an image H is down, W to the right and D one slice. Nothing is reoriented."
)


def describe(adapter: Adapter[Any, Any], model: TaskModel, traced: Traceable, file: str) -> dict[str, Any]:
    """The description of an exported network in `file`, which `standalone` reads."""
    spec = adapter.spec
    channels = list(spec.channels)
    modalities = list(spec.modalities or []) or [spec.modality] * len(channels)
    about: dict[str, Any] = {
        "format_version": 1,
        "task": spec.task.name,
        "prediction": adapter.export.prediction,
        "classes": adapter.output_names(),
        "channels": channels,
        "modalities": modalities,
        "in_channels": spec.backbone.in_channels,
        "grey": spec.grey,
        "axes": AXES,
        "intensity": spec.intensity.model_dump(mode="json"),
        "grid": "spacing" if adapter.in_windows else "fit",
        "spacing": list(spec.plan.spacing),
        "patch": list(spec.plan.patch),
        "overlap": spec.inference.overlap,
        "mirrors": [list(axes) for axes in adapter.mirrors()],
        "temperature": spec.temperature,
        "postprocess": [rule.model_dump() for rule in spec.postprocess],
        "values": spec.labels.written if adapter.export.prediction == "label_map" else [],
        "network": _network(file, traced, adapter.export.meaning),
        "steps": _steps(len(channels), adapter.in_windows, adapter.export_steps()),
    }
    return about | adapter.export_details(model, traced.shapes)


def _network(file: str, traced: Traceable, meaning: str) -> dict[str, Any]:
    shape = ["batch", *traced.example.shape[1:]]
    outputs = [
        {"name": name, "shape": ["batch", *sizes], "meaning": meaning or name.rpartition("_")[0] or name}
        for name, sizes in zip(traced.names, traced.shapes, strict=True)
    ]
    return {
        "file": file,
        "input": {"name": INPUT, "shape": shape, "dtype": "float32"},
        "outputs": outputs,
        "sizes": "any batch; channels, D, H and W are fixed to the patch",
    }


def _steps(channels: int, by_spacing: bool, after: str) -> list[str]:
    several = (
        "Channels lie on one grid; a missing one is filled with the mean of the others' outside values."
        if channels > 1
        else "One file; colours are averaged where the network takes one channel."
    )
    grid = (
        "Resize to `spacing` (mm of D, H, W) where any axis differs from it by more than "
        f"{SPACING_TOLERANCE:.0%}: linear between voxel centres, smoothed first by a Gaussian of (shrinkage - 1) / 2."
        if by_spacing
        else "Scale evenly (in mm) until the scan just fits into the patch: linear between voxel centres, smoothed "
        "first by a Gaussian of (shrinkage - 1) / 2 where it shrinks; put it in the middle of the patch."
    )
    return [
        several,
        "Intensity: modality 'ct' is clipped to `ct_window` (HU) and scaled to -1..1; any other one is clipped to its "
        "`percentiles` and z-scored by the mean and standard deviation of its foreground, or of all voxels with "
        "`zscore` 'scan' (preprocessing.py, `statistics`). Outside the scan is the value of its darkest kept one.",
        grid,
        after,
        "preprocessing.py does all of this in numpy and scipy.",
    ]
