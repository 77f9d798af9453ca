"""One plug-in file that adds all six kinds, whichever of them is asked for first."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KINDS = ("objective", "backbone", "format", "task", "metric", "output")
ASK = {
    "objective": "from scanfoundry.pretrain.objectives import objectives\nprint('toy_mean' in objectives())",
    "backbone": "from scanfoundry.backbones.registry import backbones\nprint('toy_net' in backbones())",
    "format": "from scanfoundry.datasets.readers.formats import formats\nprint('toy' in formats())",
    "task": "from scanfoundry.finetune.config.tasks.registry import tasks\nprint('grade' in tasks())",
    "metric": "from scanfoundry.finetune.metrics.registry import added_metrics\nprint('scored' in added_metrics('x'))",
    "output": "from scanfoundry.finetune.predict.outputs import names_of\nprint('npy' in names_of(('label map',)))",
}
CONFIGURATIONS = """
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig
print(ReleaseInfo.model_validate({"backbone": {"name": "toy_net"}}).backbone.width)
print(SumConfig.model_validate({"terms": [{"objective": {"name": "toy_mean"}}]}).terms[0].objective.name)
study = {"run_dir": "r", "task": {"name": "grade"}, "data": {"path": "d"}, "backbone": {"name": "toy_net"}}
print(FinetuneConfig.model_validate(study).task.highest)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """The toys of all kinds in one file."""
    text = ""
    for kind in KINDS:
        toy = (HERE / f"toy_{kind}.py").read_text()
        text += re.sub(r"^PLUGINS = ", f"{kind.upper()} = ", toy, flags=re.MULTILINE) + "\n"
    text += "PLUGINS = {" + ", ".join(f'"{kind}": {kind.upper()}["{kind}"]' for kind in KINDS) + "}\n"
    path = tmp_path_factory.mktemp("one") / "everything.py"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("first", KINDS)
def test_all_kinds_are_there_whichever_is_asked_for_first(plugin, first):
    code = "\n".join([ASK[first], *(ASK[kind] for kind in KINDS if kind != first), CONFIGURATIONS])
    environment = os.environ | {"SCANFOUNDRY_PLUGINS": str(plugin)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [*["True"] * 6, "4", "toy_mean", "2"], done.stderr


def test_a_metric_of_no_task_is_refused(tmp_path):
    (tmp_path / "toy.py").write_text("PLUGINS = {'metric': [('segmentatoin', 'worst', min, 'higher')]}\n")
    code = "from scanfoundry.configs.errors import UserError\n" + ASK["metric"]
    code = code.replace("\nprint", "\ntry:\n    print")
    code += "\nexcept UserError as error:\n    print(error)"
    environment = os.environ | {"SCANFOUNDRY_PLUGINS": str(tmp_path / "toy.py")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "the metric 'worst' to the task 'segmentatoin', which there is not" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
