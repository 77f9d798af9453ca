"""A copy of the package as it is at submission, so that a job requeued next week runs the code it was started with."""

import hashlib
import importlib.util
from pathlib import Path

PACKAGES = ("configs", "backbones", "datasets", "pretrain", "finetune", "launch")  # below scanfoundry


def package_files() -> dict[str, Path]:
    """Every file of the package that runs now, wherever it is installed, by its path below `scanfoundry`."""
    found = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(f"scanfoundry.{name}")
        if spec is None or spec.origin is None:
            raise RuntimeError(f"scanfoundry.{name} is not installed")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found[f"{name}/{path.relative_to(root).as_posix()}"] = path
    return found


def take(folder: Path) -> str:
    """Copy the package to `folder`/scanfoundry; returns its sha256. With `folder` first on PYTHONPATH, it is what runs.

    Files are read-only: a snapshot that was edited would be neither the old code nor the new.
    """
    digest = hashlib.sha256()
    for name, path in package_files().items():
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        target = folder / "scanfoundry" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o444)
    return digest.hexdigest()
