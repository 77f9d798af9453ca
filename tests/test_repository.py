"""The promises of the architecture, held against the files on disk."""

import ast
import os
import resource
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"configs": 0, "backbones": 1, "datasets": 1, "pretrain": 2, "finetune": 2, "launch": 3}
ALONE = {
    "deepspeed": "pretrain/engine/engine.py",
    "wandb": "pretrain/logging/tracker.py",
    "submitit": "launch/cluster/submit.py",
}


# The folders (and files in the root) of each package, from the lowest to the highest: each may import those before it.
ORDER = {
    "configs": "errors extras log plugins text base registry geometry files json_file console parsing loading",
    "backbones": "torchvision_cpu layers protocol distillation probes stunet primus vit resenc_decoder resenc mednext "
    "registry models transfer foreign pretrained",
    "datasets": "centres device batch identity storage intensity modality processes readers labels discovery shards "
    "crop augment sampling synthetic plan growth projection workers loader",
    "pretrain": "ema distributed sparse masking checkpoint losses objectives engine views config probes memory logging "
    "training",
    "finetune": "monai_parts config cases losses plan spec checks formats boxes metrics sample task_parts drawing "
    "sample_maker task heads inference training tasks released_model model_file study predict export report run_study "
    "run_alone",
    "launch": "cluster build_summary zoo demo cli",
}


def sources(*packages: str) -> list[Path]:
    """All source files, or those of some packages."""
    return [path for package in packages or LAYERS for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def imports(path: Path) -> set[str]:
    """The full names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_package_on_disk_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    on_disk = {"scanfoundry." + ".".join(path.parent.relative_to(ROOT).parts) for path in sources()}
    assert listed == on_disk
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in listed)
    assert all((ROOT / package / "py.typed").is_file() for package in LAYERS)  # its annotations are meant to be read


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down_only(package: str):
    for path in sources(package):
        for name in imports(path):
            if name.startswith("scanfoundry."):
                other = name.split(".")[1]
                assert other == package or LAYERS[other] < LAYERS[package], f"{path} imports {name}"
            root = name.split(".")[0]
            if root in ALONE:
                assert path == ROOT / ALONE[root], f"{root} is imported outside {ALONE[root]}"


def room(package: str, module: str) -> str:
    """The folder or file in the root of `package` that a module lies in; empty for the package itself."""
    return module.split(".")[2] if module.startswith(f"scanfoundry.{package}.") else ""


@pytest.mark.parametrize("package", LAYERS)
def test_folders_of_a_package_import_downwards_only(package: str):
    order = ORDER[package].split()
    on_disk = {path.relative_to(ROOT / package).parts[0].removesuffix(".py") for path in sources(package)}
    assert on_disk - {"__init__"} == set(order)
    for path in sources(package):
        here = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for name in imports(path):
            there = room(package, name)
            if there in order:
                assert order.index(there) <= order.index(here), f"{path} imports {name}, which lies above it"


def test_help_answers_in_half_a_second():
    # Of one core's time, which is what it takes on a quiet machine: other tests run beside this one.
    command = [str(Path(sys.executable).parent / "scanfoundry"), "--help"]
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5


def test_tests_of_one_group_share_a_process(tmp_path: Path):
    # pytest 9.2.0 gives pytest-xdist 3.8.0 no way to mark them: two tests had the SLURM cluster at once.
    body = "import os, pathlib, pytest\n\n" + "\n".join(
        f"@pytest.mark.xdist_group('one')\ndef test_{i}():\n    pathlib.Path('{i}.id').write_text(str(os.getpid()))\n"
        for i in range(6)
    )
    (tmp_path / "test_group.py").write_text(body)
    words = ["-m", "pytest", "-q", "--numprocesses", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # ours, not its
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    processes = [path.read_text() for path in tmp_path.glob("*.id")]
    assert len(processes) == 6
    assert len(set(processes)) == 1


def test_no_path_of_one_machine_is_tracked():
    command = [
        "git",
        "grep",
        "-nIE",
        r"(^|[^A-Za-z0-9_.$}])/(work|farm|root|home)/",
        "--",
        ".",
        ":!tests/test_repository.py",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip("this is no git checkout")
    assert found.stdout == ""
