"""A release that can be given away: whole, loadable, honest, and without what must not leave."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
import torch
import yaml
from torch import nn

import scanfoundry.backbones as backbones
from scanfoundry.backbones.models.description import ReleaseInfo, SourceRecord
from scanfoundry.backbones.models.release import load_release, save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.exporting import ReleaseTerms, check_terms, export, exported_before, load_run
from scanfoundry.pretrain.checkpoint import model_state
from scanfoundry.pretrain.checkpoint.parameter_shards import parameter_shards
from scanfoundry.pretrain.distributed.world import ALONE
from scanfoundry.pretrain.engine.averaged_encoder import EmaConfig, add_average

HASHES = ["a1" * 32, "b2" * 32, "c3" * 32]


@pytest.fixture
def run(tmp_path):
    """A finished pre-training run, as `pretrain/training/release.py` leaves it."""
    config = ViTConfig(size="Ti")
    info = ReleaseInfo(
        backbone=config, objective="1 mae + 0.5 contrastive", step=4000, intensity={"percentiles": [0.5, 99.5]},
        crop_2d=(64, 64), crop_3d=(32, 32, 32),
        sources=(SourceRecord(name="mr", manifest_sha256="ab" * 32, site="s1"),), licence="cc-by-4.0",
        citation="Us 2026", versions={"torch": "2.13.0"},
    )  # fmt: skip
    save_release(tmp_path / "run", {"encoder": build(config).state_dict()}, info, HASHES)
    return tmp_path / "run"


def header(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def code(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def test_the_release_is_whole_and_loads_as_its_card_says(run, tmp_path):
    exported = export(run, tmp_path / "ours", ReleaseTerms(intended_use="Brain MR research."))
    folder = tmp_path / "ours"
    assert exported.folder == folder
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "model.json", "patients.txt", "README.md", "SHA256SUMS",
    }  # fmt: skip
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    mine, theirs = load_release(run), load_release(folder)
    assert all(torch.equal(mine.encoder[key], theirs.encoder[key]) for key in mine.encoder)
    assert theirs.patients == mine.patients
    card = (folder / "README.md").read_text()
    head = header(card)
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "scanfoundry"
    assert {"vit", "mae", "contrastive"} <= set(head["tags"])
    for fact in ("ab" * 32, "4000 steps", "Not a medical device", "Brain MR research.", "Us 2026", "99.5",
                 theirs.info.weights_sha256, "3 patients", "None were measured or given"):  # fmt: skip
        assert fact in card
    assert str(tmp_path) not in card
    done = subprocess.run([sys.executable, "-c", code(card)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("crops", [{"crop_3d": None}, {"crop_3d": None, "crop_2d": None}])
def test_the_code_of_the_card_runs_whatever_is_known(run, tmp_path, crops):
    release = load_release(run)
    save_release(run, release.parts, release.info.model_copy(update=crops), [])
    export(run, tmp_path / "ours", ReleaseTerms())
    names: dict = {}
    exec(code((tmp_path / "ours" / "README.md").read_text()).replace('"."', repr(str(tmp_path / "ours"))), names)
    assert names["vector"].shape == (1, 192)


def test_what_is_unknown_is_said_to_be_unknown(tmp_path):
    config = ViTConfig(size="Ti")
    save_release(tmp_path / "run", {"encoder": build(config).state_dict()}, ReleaseInfo(backbone=config), [])
    export(tmp_path / "run", tmp_path / "ours", ReleaseTerms())
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "license" not in header(card)
    for line in ("No licence was given", "No citation was given", "No intended use was stated", "is not recorded",
                 "objective unknown", "an unknown number of steps"):  # fmt: skip
        assert line in card


def test_patients_can_be_left_out_and_the_card_says_so(run, tmp_path):
    export(run, tmp_path / "ours", ReleaseTerms(with_patients=False))
    everything = b"".join(path.read_bytes() for path in (tmp_path / "ours").iterdir())
    assert not [one for one in HASHES if one.encode() in everything]
    _, info = backbones.load(tmp_path / "ours")
    assert (info.patients, info.patients_withheld) == (0, 3)
    assert info.sources[0].site == ""  # fine-tuning then says that it could not compare
    assert "hashes of 3 patients trained on are left out" in (tmp_path / "ours" / "README.md").read_text()
    export(tmp_path / "ours", tmp_path / "again", ReleaseTerms())
    assert load_release(tmp_path / "again").info.patients_withheld == 3


def test_licences(run, tmp_path):
    export(run, tmp_path / "a", ReleaseTerms(licence="apache-2.0"))
    assert header((tmp_path / "a" / "README.md").read_text())["license"] == "apache-2.0"
    assert load_release(tmp_path / "a").info.licence == "apache-2.0"
    export(run, tmp_path / "b", ReleaseTerms(licence="Our Hospital's: terms!"))
    head = header((tmp_path / "b" / "README.md").read_text())
    assert (head["license"], head["license_name"]) == ("other", "our-hospital-s-terms")


def test_inherited_terms_are_kept_and_not_dropped_by_publishing(run, tmp_path):
    release = load_release(run)
    inherited = release.info.model_copy(update={"licence": "of the weights it started from: cc-by-nc-4.0"})
    save_release(run, release.parts, inherited, HASHES)
    with pytest.raises(UserError, match="without a licence is not pushed"):
        export(run, tmp_path / "ours", ReleaseTerms(), repository="clinic/brain")
    with pytest.raises(UserError, match=r"not pushed as apache-2\.0: .*cc-by-nc-4\.0.*forbids commercial use"):
        export(run, tmp_path / "ours", ReleaseTerms(licence="apache-2.0"), repository="clinic/brain")
    assert not (tmp_path / "ours").exists()
    exported = export(run, tmp_path / "ours", ReleaseTerms(licence="cc-by-nc-4.0"), repository="clinic/brain")
    assert "It started from weights under: cc-by-nc-4.0" in (tmp_path / "ours" / "README.md").read_text()
    again = exported_before(tmp_path / "ours")
    assert again == exported
    check_terms(again)


def test_metrics_of_a_file(run, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"Dice": 0.8321, "AUROC": {"chest": 0.9, "note": "5 | seeds"}}))
    export(run, tmp_path / "ours", ReleaseTerms(metrics=path))
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "| Dice | 0.8321 |" in card
    assert "| AUROC chest | 0.9 |" in card
    assert "5 \\| seeds" in card
    for wrong in ("[]", "{", '{"a": [1]}', '{"a": null}', "{}"):
        path.write_text(wrong)
        with pytest.raises(UserError, match="--metrics"):
            export(run, tmp_path / "other", ReleaseTerms(metrics=path))
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("averaged", [None, 0.99])
def test_a_checkpoint_gives_the_weights_that_its_run_releases(run, averaged):
    """The averaged encoder where there is one, and nothing of the optimiser."""
    torch.manual_seed(1)
    objective = nn.Module()
    objective.encoder, objective.head = build(ViTConfig(size="Ti")), nn.Linear(3, 3)
    objective.trained_parts = lambda: {"encoder": "encoder"}
    add_average(objective, None if averaged is None else EmaConfig(momentum=averaged))
    with torch.no_grad():
        objective.encoder.cls_token += 1
    if averaged is not None:
        release = load_release(run)
        info = release.info.model_copy(update={"averaged": averaged})
        save_release(run, release.parts, info, release.patients)

    def write(folder):
        held = parameter_shards(objective, None, 0, ALONE)
        return model_state.snapshot(objective, held, {}, {}, ALONE).write(folder)

    step = checkpoints.save(run / "checkpoints", 7, {}, write, keep_last=1)
    found = load_run(step)
    wanted = objective.get_submodule("averaged.encoder" if averaged else "encoder").state_dict()
    assert found.encoder.keys() == wanted.keys()
    assert all(torch.equal(found.encoder[key], wanted[key]) for key in wanted)
    assert torch.equal(found.encoder["cls_token"], objective.encoder.cls_token) == (averaged is None)
    assert (found.info.step, found.patients) == (7, sorted(HASHES))
    file = step / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="has changed"):
        load_run(step)


def test_mistakes(run, tmp_path):
    with pytest.raises(UserError, match=r"has no model\.safetensors: a run writes it when it ends"):
        export(tmp_path, tmp_path / "ours", ReleaseTerms())
    step = tmp_path / "run" / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (step / "complete.json").write_text("{}")
    with pytest.raises(UserError, match="is broken"):
        load_run(step)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="nothing in it is written over"):
        export(run, tmp_path / "mine", ReleaseTerms())
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        export(run, tmp_path / "ours", ReleaseTerms())
    assert not (tmp_path / "ours").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.fixture
def study(tmp_path) -> Path:
    """A fine-tuned model and its results, as a study leaves them; the records name single cases."""
    from scanfoundry.backbones.stunet import STUNetConfig
    from scanfoundry.datasets.intensity import IntensityConfig
    from scanfoundry.finetune.config.study import InferenceConfig
    from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
    from scanfoundry.finetune.model_file import Seen, adapter_for, save_model
    from scanfoundry.finetune.plan import Fingerprint, Plan
    from scanfoundry.finetune.spec import Spec

    backbone = STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3)
    print_ = Fingerprint(scans=3, shape=(20, 16, 18), spacing=(2, 1.5, 1.5), is_2d=False)
    plan = Plan(spacing=(2, 1.5, 1.5), patch=(16, 16, 16), batch=2, fingerprint=print_)
    spec = Spec(
        task=SegmentationTask(name="segmentation"), classes=["liver"], modality="ct", intensity=IntensityConfig(),
        backbone=backbone, plan=plan, inference=InferenceConfig(), trained={"arm": "checkpoint", "shots": 5},
    )  # fmt: skip
    here = SourceRecord(name="fine-tuning", manifest_sha256="", site="s1")
    save_model(tmp_path / "study", [adapter_for(spec).build(build(backbone))], spec, Seen(HASHES[:2], (here,)))
    dice = {"value": 0.81234, "low": 0.7, "high": 0.9, "patients": 9, "seeds": 1, "resamples": 100, "undefined": 0}
    none = dice | {"value": None, "low": None, "high": None}
    results = {
        "table": [{"arm": "checkpoint", "shots": 5, "train_cases": 5, "metrics": {"dice": dice, "nsd": none}}],
        "warnings": ["one seed: rough."], "data": {"test_patients": 9},
        "cells": [{"records": [{"case": "Doe_00", "patient": "Doe", "score": 0.1}]}],
    }  # fmt: skip
    (tmp_path / "study" / "results.json").write_text(json.dumps(results))
    return tmp_path / "study"


def test_a_fine_tuned_model(study, tmp_path):
    export(study, tmp_path / "ours", ReleaseTerms(licence="cc-by-4.0"))
    folder = tmp_path / "ours"
    from scanfoundry.finetune.model_file import load_model

    load_model(folder)
    card = (folder / "README.md").read_text()
    assert "| checkpoint | 5 | 0.8123 [0.7000, 0.9000] | undefined |" in card
    assert "9 test patients" in card
    assert "one seed: rough." in card
    assert header(card)["pipeline_tag"] == "image-segmentation"
    assert "Classes: liver" in card
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"Doe_00" not in everything
    names = {"model.safetensors", "model.json", "patients.txt", "README.md", "SHA256SUMS"}
    assert {path.name for path in folder.iterdir()} == names
    assert "of the 2 patients trained on" in card
    assert load_release(folder).parts.keys() == {"encoder", "decoder", "head"}
    assert load_release(folder).patients == HASHES[:2]


def test_patients_of_a_fine_tuned_model_can_be_left_out(study, tmp_path):
    export(study, tmp_path / "ours", ReleaseTerms(with_patients=False))
    release = load_release(tmp_path / "ours")
    assert release.patients == []
    assert (release.info.patients, release.info.patients_withheld) == (0, 2)
    assert [source.site for source in release.info.sources] == [""]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "ours").iterdir())
    assert HASHES[0].encode() not in everything
    assert b"hashes of 2 patients trained on are left out" in everything
    for line in (tmp_path / "ours" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "ours" / name).read_bytes()).hexdigest() == digest


def test_the_card_of_a_whole_network_names_its_parts_and_classes(tmp_path):
    from scanfoundry.backbones.models.description import HeadInfo
    from scanfoundry.backbones.models.parts import split
    from scanfoundry.backbones.resenc import ResEncConfig

    config = ResEncConfig(features=(4, 6), blocks=(1, 1), strides=((2, 2, 2),))
    network = build(config).decoder(3)
    info = ReleaseInfo(backbone=config, head=HeadInfo(task="segmentation", classes=["liver", "spleen"]))
    save_release(tmp_path / "run", split(network, network.state_dict()), info, [])
    export(tmp_path / "run", tmp_path / "ours", ReleaseTerms())
    assert load_release(tmp_path / "ours").parts.keys() == {"encoder", "decoder", "head"}
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "A pre-trained model for medical scans" in card
    assert "Its parts: encoder, decoder, head. The head is of segmentation; its classes (2): liver, spleen." in card
    from scanfoundry.launch.zoo.inspecting import inspect

    told = inspect(tmp_path / "ours")
    assert "parts: encoder, decoder, head" in told
    assert "classes (2): liver, spleen" in told
