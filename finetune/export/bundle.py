"""A MONAI bundle: `python -m monai.bundle run --config_file configs/inference.json` predicts without scanfoundry.

The network is a torch.export program (`models/model.pt2`) whose weights lie in the state dictionary that the bundle
specification asks for (`models/model.pt`). Not TorchScript, which is deprecated.
Reading and writing are MONAI's; what lies between is `standalone`, so that the labels are those of
`scanfoundry predict`.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.export import bundle_runner, standalone
from scanfoundry.finetune.export.bundle_texts import metadata, readme
from scanfoundry.finetune.export.describe import describe
from scanfoundry.finetune.export.folder import new_folder
from scanfoundry.finetune.export.inlining import source_without_scanfoundry
from scanfoundry.finetune.export.network import Traceable, differences, single_model, traceable
from scanfoundry.finetune.task import Adapter

PROGRAM, WEIGHTS, ABOUT = "models/model.pt2", "models/model.pt", "configs/preprocessing.json"


@dataclass(frozen=True)
class Terms:
    """What the user says of the model."""

    licence: str = ""  # '' where it is not known: then there is no license.txt
    intended_use: str = ""
    citation: str = ""


def export_bundle(run: Path, out: Path, terms: Terms | None = None) -> Path:
    """Write the model of a fine-tuning run as a MONAI bundle into a new folder.

    UserError where the run is no fine-tuned model, or one of a task that has no bundle (MONAI's inferers give no boxes
    of ours), or `out` holds something.
    """
    adapter, model = single_model(run)
    spec, terms = adapter.spec, terms or Terms()
    output, task = adapter.export.bundle, spec.task.name
    if output is None:
        raise UserError(f"a MONAI bundle of a model of {task} cannot be written: export it with --to onnx or release")
    traced = traceable(model, spec)
    with new_folder(out) as part:
        for name in ("configs", "models", "scripts", "docs"):
            (part / name).mkdir()
        about = describe(adapter, model, traced, PROGRAM)
        write_program(traced, part)
        _json(part / ABOUT, about)
        _json(part / "configs/inference.json", inference(adapter))
        _json(
            part / "configs/metadata.json",
            metadata(about, spec, output, terms.licence, terms.intended_use, terms.citation),
        )
        (part / "scripts/__init__.py").write_text("")
        (part / "scripts/preprocessing.py").write_text(source_without_scanfoundry(standalone), encoding="utf-8")
        runner = source_without_scanfoundry(bundle_runner, {standalone.__name__: "scripts.preprocessing"})
        (part / "scripts/running.py").write_text(runner, encoding="utf-8")
        (part / "docs/README.md").write_text(
            readme(about, output, terms.licence, terms.intended_use, terms.citation), encoding="utf-8"
        )
        if terms.licence:
            (part / "docs/license.txt").write_text(
                f"SPDX-License-Identifier: {' '.join(terms.licence.split())}\n", encoding="utf-8"
            )
    return out


def write_program(traced: Traceable, folder: Path) -> None:
    """The traced network without its weights, and its weights.

    In the program each weight is one zero seen as many, so that it takes no room.
    """
    program = torch.export.export(traced.network, (traced.example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    found = program.module()(traced.example)
    if differences(traced.reference(traced.example), found if isinstance(found, tuple) else (found,)) > 0:
        raise UserError("the traced program does not give the network's numbers: nothing was written")
    weights = {name: value.detach().contiguous() for name, value in program.state_dict.items()}
    torch.save(weights, folder / WEIGHTS)
    torch.export.save(_hollow(program), folder / PROGRAM)


def _hollow(program: ExportedProgram) -> ExportedProgram:
    hollow = deepcopy(program)
    for name, value in hollow.state_dict.items():
        empty = torch.zeros((), dtype=value.dtype).expand(value.shape)
        hollow.state_dict[name] = torch.nn.Parameter(empty) if isinstance(value, torch.nn.Parameter) else empty
    return hollow


def inference(adapter: Adapter[Any, Any]) -> dict[str, Any]:
    """`inference.json`: what MONAI's ConfigParser builds and runs."""
    segments = adapter.export.prediction == "label_map"
    channels = len(adapter.spec.channels)
    load = {"_target_": "LoadImaged", "keys": "image", "image_only": True, "ensure_channel_first": True}
    save = {"_target_": "scripts.running.SaveOutputs", "keys": "pred", "folder": "@output_dir", "root": "@dataset_dir"}
    return {
        "imports": ["$import json", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "about": f"$json.load(open(@bundle_root + '/{ABOUT}'))",
        "network_def": {
            "_target_": "scripts.running.Network",
            "program": f"$@bundle_root + '/{PROGRAM}'",
            "weights": f"$@bundle_root + '/{WEIGHTS}'",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [load, {"_target_": "scripts.running.Prepared", "keys": "image", "about": "@about"}],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": "scripts.running.cases", "folder": "@dataset_dir", "channels": channels},
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "scripts.running.Windows", "about": "@about"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "scripts.running.ToLabelMap", "keys": "pred", "about": "@about"}, save],
        }
        if segments
        else None,
        "evaluator": {
            "_target_": "scripts.running.Evaluator",
            "dataset": "@dataset",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
            "classes": "$@about['classes']",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
