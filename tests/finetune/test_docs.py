"""Every piece of Python in docs/finetuning.md runs."""

import re
from pathlib import Path

import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import prepare

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
TINY = {"name": "resenc", "features": [8, 12, 16], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [2, 2, 2]]}


@pytest.fixture
def given(study, slices):
    """What the page takes for granted, by task."""

    def make(task):
        settled = prepare(study(task, slices, backbone=TINY, plan={"patch": [1, 48, 48], "batch": 2}))
        cases = settled.sides.pool
        names = {"spec": settled.spec, "cases": cases, "device": torch.device("cpu")}
        names |= {"encoder": build(settled.spec.backbone), "scan": cases[0].image.read()}
        if task == "classification":
            adapter = adapter_for(settled.spec)
            model = adapter.build(names["encoder"]).eval()
            image = torch.randn(1, 1, 1, 48, 48)
            names |= {"adapter": adapter, "model": model, "sample": adapter.load(cases[0]), "image": image}
            names["class_index"] = 1
        return names

    return make


def test_there_are_as_many_pieces_as_are_known_here():
    assert [next(task for task in ("Detection", "saliency") if task in each) for each in SNIPPETS] == [
        "Detection", "saliency",
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_it_runs(given, number):
    task = "detection" if "Detection" in SNIPPETS[number] else "classification"
    names = given(task)
    exec(compile(SNIPPETS[number], f"{PAGE.name} piece {number}", "exec"), names)
    if task == "detection":
        assert names["boxes"].shape[1] == 6
        assert len(names["boxes"]) == len(names["scores"]) == len(names["labels"])
    else:
        assert names["found"].shape == names["sample"].image.shape[1:]
        assert 0 <= names["found"].min() <= names["found"].max() <= 1
