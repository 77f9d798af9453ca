"""One cell of a study (arm, shots, seed): trained, tested, written down whole or not at all."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from scanforge.backbones.protocol import Encoder
from scanforge.backbones.registry import build
from scanforge.finetune.adapter import Adapter, Sample, Spec
from scanforge.finetune.cases import Case
from scanforge.finetune.config import FinetuneConfig
from scanforge.finetune.detection import Detection
from scanforge.finetune.metrics.intervals import Record
from scanforge.finetune.modelfile import adapter_for, save_model
from scanforge.finetune.storage import write_json, write_whole
from scanforge.finetune.training import History, Progress, train

RESULT, PICTURES = "cell.json", "pictures.npz"


@dataclass(frozen=True)
class CellName:
    """Which cell."""

    arm: str  # 'checkpoint' or 'scratch'
    shots: int | str
    seed: int

    @property
    def folder(self) -> str:
        """Its folder's name under cells/."""
        return f"{self.arm}-{self.shots}-shots-seed{self.seed}"


class CellResult(BaseModel):
    """What a finished cell leaves: nothing in it names a patient or a file."""

    digest: str  # of everything that the result depends on
    arm: str
    shots: int | str
    seed: int
    train_cases: list[str]  # keyed hashes
    history: History
    records: list[Record]


def digest(config: FinetuneConfig, spec: Spec, train: Sequence[Case], test: Sequence[Case], weights: str) -> str:
    """Changes with anything that changes a cell's result; the run folder and the report's options do not."""
    others = {"run_dir", "shots", "seeds", "compare_scratch", "bootstrap", "data", "checkpoint", "keep_weights", "plan"}
    parts = [
        config.model_dump(mode="json", exclude=others),
        spec.model_dump(mode="json"),
        sorted(case.key for case in train),
        sorted(case.key for case in test),
        weights,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def stored(folder: Path, expected: str, with_weights: bool) -> CellResult | None:
    """The finished result in `folder`, if it is of the same data, plan and configuration."""
    if with_weights and not (folder / "model.json").exists():
        return None
    try:
        found = CellResult.model_validate(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.digest == expected else None


def run_cell(
    config: FinetuneConfig,
    spec: Spec,
    name: CellName,
    train_cases: Sequence[Case],
    test_cases: Sequence[Case],
    pretrained: dict[str, torch.Tensor] | None,
    folder: Path,
    keep: bool,
    mark: str,
    device: torch.device,
    progress: Progress,
    tested: Callable[[int], None],
) -> CellResult:
    """Train, test on every case, and write pictures, weights (if `keep`) and, last, the result."""
    adapter = adapter_for(spec)
    if isinstance(adapter, Detection):
        adapter = adapter.planned(train_cases)
    samples = [adapter.load(case) for case in train_cases]
    model = adapter.build(_encoder(spec, name.seed, pretrained))
    history = train(
        adapter,
        model,
        samples,
        config.schedule,
        config.augmentation,
        name.seed,
        pretrained is not None,
        device,
        progress,
    )
    del samples
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    records, worst = _test(adapter, model, test_cases, config.worst_cases, device, tested)
    write_whole(folder / PICTURES, lambda part: _save_pictures(part, worst))
    if keep:
        trained = {"arm": name.arm, "shots": name.shots, "seed": name.seed, "steps": history.steps}
        save_model(folder, model, adapter.spec.model_copy(update={"trained": trained}))
    result = CellResult(
        digest=mark,
        arm=name.arm,
        shots=name.shots,
        seed=name.seed,
        train_cases=[case.key for case in train_cases],
        history=history,
        records=records,
    )
    write_json(folder / RESULT, result.model_dump())
    return result


def _encoder(spec: Spec, seed: int, pretrained: dict[str, torch.Tensor] | None) -> Encoder:
    """Fresh weights of the seed, then those of the checkpoint; the generator ends in the same state either way, so
    that both arms start from the same head."""
    torch.manual_seed(seed)
    encoder = build(spec.backbone)
    if pretrained is not None:
        encoder.load_state_dict(pretrained)
    return encoder


def _test(
    adapter: Adapter[Any, Any],
    model: Any,
    cases: Sequence[Case],
    worst_cases: int,
    device: torch.device,
    tested: Callable[[int], None],
) -> tuple[list[Record], dict[str, dict[str, Any]]]:
    """Records of all cases, and the pictures of those with the lowest score."""
    records: list[Record] = []
    pictures: dict[str, tuple[float, dict[str, Any]]] = {}
    for i, case in enumerate(cases):
        sample: Sample[Any] = adapter.load(case)
        prediction = adapter.predict([model] if isinstance(adapter, Detection) else model, sample, device)
        record = adapter.record(case, sample, prediction)
        records.append(record)
        if record["score"] is not None:
            pictures[case.key] = (record["score"], adapter.picture(sample, prediction))
            if len(pictures) > worst_cases:
                del pictures[max(pictures, key=lambda key: pictures[key][0])]
        tested(i + 1)
    return records, {key: picture for key, (_, picture) in sorted(pictures.items(), key=lambda item: item[1][0])}


def _save_pictures(path: Path, pictures: dict[str, dict[str, Any]]) -> None:
    flat = {f"{key}.{part}": array for key, picture in pictures.items() for part, array in picture.items()}
    with path.open("wb") as stream:
        np.savez_compressed(stream, **flat)


def load_pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """Pictures by case, worst first, as `run_cell` wrote them."""
    pictures: dict[str, dict[str, Any]] = {}
    with np.load(folder / PICTURES) as stored_arrays:
        for name in stored_arrays.files:
            key, _, part = name.partition(".")
            pictures.setdefault(key, {})[part] = stored_arrays[name]
    return pictures
