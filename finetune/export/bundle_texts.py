"""What a MONAI bundle says of itself: `metadata.json` by the keys of the bundle specification, and its README."""

from importlib.metadata import version
from typing import Any

from scanfoundry.finetune.export.escaping import for_markdown, for_monai
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.task_parts import BundleOutput

RUN = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir PREDICTIONS"
NEEDED = ("nibabel", "scipy", "fire")  # beside monai, torch and numpy; `fire` is monai.bundle's own command line
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MODALITIES = {"ct": "CT", "mr": "MR", "us": "US", "xr": "XR"}
NOT_SAID = "not stated"


def metadata(
    about: dict[str, Any], spec: Spec, output: BundleOutput, licence: str, intended_use: str, citation: str
) -> dict[str, Any]:
    """The body of `metadata.json`, in which no name or word of the user's is code to MONAI."""
    patch, channels = about["patch"], about["in_channels"]
    names = about["channels"] if len(about["channels"]) == channels else [f"channel {i}" for i in range(channels)]
    modality = about["modalities"][0]
    segments = about["prediction"] == "label_map"
    title = f"{about['task']} of {', '.join(spec.classes or about['classes'])}"
    image = {
        "type": "image",
        "format": "hounsfield" if modality == "ct" else "magnitude",
        "modality": MODALITIES.get(modality, modality),
        "num_channels": channels,
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [-1, 1] if modality == "ct" else [],
        "is_patch_data": segments,
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }
    prediction = {
        "type": output.type,
        "format": output.format,
        "num_channels": len(about["classes"]),
        "spatial_shape": patch if segments else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": segments,
        "channel_def": {str(i): name for i, name in enumerate(about["classes"])},
    }
    return for_monai(
        {
            "schema": SCHEMA,
            "version": "0.1.0",
            "changelog": {"0.1.0": "exported by scanfoundry"},
            "monai_version": version("monai"),
            "pytorch_version": version("torch").partition("+")[0],
            "numpy_version": version("numpy"),
            "required_packages_version": {name: version(name) for name in NEEDED if _installed(name)},
            "name": title,
            "task": title,
            "description": f"{spec.backbone.name} fine-tuned by scanfoundry; axes of the arrays are D, H, W",
            "authors": NOT_SAID,
            "copyright": licence or NOT_SAID,
            "intended_use": intended_use or NOT_SAID,
            "references": [citation] if citation else [],
            "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
        }
    )


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def readme(about: dict[str, Any], output: BundleOutput, licence: str, intended_use: str, citation: str) -> str:
    """The bundle's README.md."""
    steps = "\n".join(f"- {step}" for step in about["steps"])
    classes, channels = (", ".join(map(for_markdown, about[key])) for key in ("classes", "channels"))
    licence, intended_use, citation = map(for_markdown, (licence, intended_use, citation))
    several = (
        f"Files of one case are named NAME_0000, NAME_0001 ... in the order {channels}.\n"
        if len(about["channels"]) > 1
        else ""
    )
    return f"""# {about["task"]}: {classes}

Not for clinical use unless whoever runs it has validated it for that.

```
pip install "monai[{",".join(NEEDED)}]"
{RUN}
```

SCANS is a folder of NIfTI, PNG or JPEG files. PREDICTIONS gets {output.written}.
{several}
## What happens to a scan
{about["axes"]}

{steps}

`models/model.pt2` is the network as a torch.export program, `models/model.pt` its weights.

## Terms
- Licence: {licence or NOT_SAID}
- Intended use: {intended_use or NOT_SAID}
- Citation: {citation or NOT_SAID}
"""
