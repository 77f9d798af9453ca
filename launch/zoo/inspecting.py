"""`scanfoundry models inspect`: what is inside a file or folder, without running anything in it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import sha256_of
from scanfoundry.launch.zoo.catalogue import human, model_by_sha256
from scanfoundry.launch.zoo.contents import FileContents
from scanfoundry.launch.zoo.open import contents_of
from scanfoundry.launch.zoo.origin import read_origin

if TYPE_CHECKING:  # a heavy import
    from scanfoundry.backbones.models.description import HeadInfo

KEYS, LARGEST, GROUPS, RECORDS = 5, 3, 40, 40  # that are shown
SEAL = "complete.json"  # of a checkpoint folder, see pretrain/checkpoint/checkpoint.py


def inspect(path: Path) -> list[str]:
    """Describe a weight file, or a run, release or checkpoint folder.

    Returns:
        Lines for people; file names and texts in them are not escaped yet.

    Raises:
        UserError: it is missing or damaged, or its pickle would run code.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; check the name")
    if path.name == "model.safetensors" and (path.parent / "model.json").is_file():
        return _release(path.parent)
    contents = contents_of(path)
    digest = sha256_of(path)
    lines = [f"{path}: {contents.kind}, {human(path.stat().st_size)}", f"sha256: {digest}", *_tensors(contents)]
    lines += [f"{name}: {value}" for name, value in list(contents.metadata.items())[:RECORDS]]
    lines += [f"and {len(contents.metadata) - RECORDS} more records"] if len(contents.metadata) > RECORDS else []
    entry = model_by_sha256(digest)
    if entry is None:
        lines.append("licence and origin: not in the file, and not a file of the catalogue")
    else:
        lines.append(f"the file of {entry.name} ({entry.page}): licence {entry.licence}, cite {entry.citation}")
    return [*lines, *_loads(path, contents)]


def _tensors(contents: FileContents) -> list[str]:
    tensors = contents.tensors
    if not tensors:
        return ["tensors: none"]
    total = sum(tensor.numbers for tensor in tensors)
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numbers
    kinds = ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(counts.items(), key=lambda item: -item[1]))
    lines = [f"tensors: {len(tensors)} of {total:,} numbers ({kinds})"]
    groups: dict[str, list[int]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.group, []).append(tensor.numbers)
    if len(groups) > 1:
        shown = list(groups.items())[:GROUPS]
        lines += [f"  {name}: {len(sizes)} tensors, {sum(sizes):,} numbers" for name, sizes in shown]
        lines += [f"  and {len(groups) - GROUPS} more"] if len(groups) > GROUPS else []
    lines.append("first: " + ", ".join(str(tensor) for tensor in tensors[:KEYS]))
    largest = sorted(tensors, key=lambda tensor: -tensor.numbers)[:LARGEST]
    return [*lines, "largest: " + ", ".join(str(tensor) for tensor in largest)]


def _loads(path: Path, contents: FileContents) -> list[str]:
    """Which backbone the file becomes, with what happens to its keys."""
    from scanfoundry.backbones.foreign import load_foreign_parts

    if not contents.tensors:
        return []
    try:
        parts, info, report = load_foreign_parts(path)
    except UserError as error:
        return [f"loads into no backbone: {error}"]
    head = _head_facts(info.head if "head" in parts else None)
    return [f"loads into: {info.backbone!r}", f"parts: {', '.join(parts)}", *head, *str(report).splitlines()]


def _head_facts(head: "HeadInfo | None") -> list[str]:
    """What a head predicts, as lines."""
    if head is None:
        return []
    names = f"classes ({len(head.classes)}): {', '.join(head.classes)}" if head.classes else "classes: not named"
    window = f", patch {head.patch}" if head.patch else ""
    return [f"head: {head.task}{window}, modality {head.modality}", *([] if head.task == "reconstruction" else [names])]


def _folder(path: Path) -> list[str]:
    if (path / SEAL).is_file():
        return _checkpoint(path)
    if (path / "model.json").is_file():
        return _release(path)
    checkpoints = sorted((path / "checkpoints").glob("step-*"))
    if checkpoints or (path / "config.yaml").is_file():
        lines = [f"{path}: a run folder without a finished model"]
        return [*lines, *(line for one in checkpoints[-1:] for line in _checkpoint(one))]
    raise UserError(f"{path} is no release, run or checkpoint folder; give a file in it")


def _checkpoint(path: Path) -> list[str]:
    try:
        seal = json.loads((path / SEAL).read_text())
        files = {str(name): int(facts["bytes"]) for name, facts in seal["files"].items()}
        step = int(seal["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is a broken checkpoint: {SEAL} cannot be read; use an earlier one") from error
    missing = [name for name, size in files.items() if not _has(path / name, size)]
    lines = [f"{path}: a checkpoint of step {step}, {len(files)} files, {human(sum(files.values()))}"]
    lines += [f"  {name}: {human(size)}" for name, size in sorted(files.items())]
    return lines + [f"BROKEN: {name} is missing or of another size" for name in missing]


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _release(folder: Path) -> list[str]:
    described = _described(folder)
    weights = folder / "model.safetensors"
    finetuned = described.get("kind") == "finetuned"
    kind = "encoder" if described.get("parts", ["encoder"]) == ["encoder"] else "model"
    lines = [f"{folder}: {'a fine-tuned model' if finetuned else f'a pre-trained {kind}'}"]
    if weights.is_file():
        whole = sha256_of(weights) == described.get("weights_sha256")
        lines.append(f"weights: {human(weights.stat().st_size)}, checksum {'right' if whole else 'WRONG: damaged'}")
        lines += _tensors(contents_of(weights))
    else:
        lines.append("weights: model.safetensors is MISSING")
    lines += _finetuned_facts(folder, described) if finetuned else _release_facts(folder)
    if origin := read_origin(folder):
        lines.append(f"origin: {origin.name}, {origin.file} from {origin.fetched_from} (sha256 {origin.sha256})")
        lines.append(f"verified by: {origin.verified_by or 'nothing: no checksum is published'}")
        lines += [f"trained on: {origin.trained_on}", f"preprocessing: {origin.preprocessing}"]
        lines.append(f"commercial use: {origin.commercial_use}")
    return lines


def _described(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'model.json'} is not valid JSON ({error}); copy the release again") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / 'model.json'} describes no model; copy the release again")
    return content


def _release_facts(folder: Path) -> list[str]:
    from scanfoundry.backbones.models.description import read_info

    info = read_info(folder / "model.json")
    withheld = f" ({info.patients_withheld} more were left out of the list)" if info.patients_withheld else ""
    return [
        f"backbone: {info.backbone!r}",
        f"parts: {', '.join(info.parts)}",
        *_head_facts(info.head if "head" in info.parts else None),
        f"objective: {info.objective or 'unknown'}, step {info.step}",
        *(f"source: {source.name}, manifest {source.manifest_sha256}" for source in info.sources),
        f"patients trained on: {info.patients} listed{withheld}",
        f"licence: {info.licence or 'unknown'}",
        f"citation: {info.citation or 'none'}",
    ]


def _finetuned_facts(folder: Path, described: dict[str, Any]) -> list[str]:
    task, origin = described.get("task"), described.get("origin")
    name = task.get("name") if isinstance(task, dict) else "unknown"
    weights = folder / "model.safetensors"
    names = [tensor.key for tensor in contents_of(weights).tensors] if weights.is_file() else []
    # names of several models that predict together begin with a number
    found = {next((word for word in each.split(".")[:2] if not word.isdigit()), "") for each in names}
    parts = [part for part in ("encoder", "decoder", "head") if part in found]
    listed = [f"patients trained on: {origin.get('patients')} listed"] if isinstance(origin, dict) else []
    return [
        f"task: {name}, classes {described.get('classes')!r}, modality {described.get('modality')!r}",
        f"backbone: {described.get('backbone')!r}",
        *([f"parts: {', '.join(parts)}"] if parts else []),
        *listed,
    ]
