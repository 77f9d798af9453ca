import json

import pytest

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.cases import Case, Grid
from scanfoundry.finetune.cases.sources import scan_file
from scanfoundry.finetune.config.study import PlanOverrides
from scanfoundry.finetune.plan import Fingerprint, fingerprint, make_plan, settle_plan

ENCODER = build(STUNetConfig(size="S", strides=((2, 2, 2),) * 3 + ((1, 1, 1),) * 2))


def found(shape, spacing=(1.0, 1.0, 1.0)):
    return Fingerprint(scans=9, shape=shape, spacing=spacing, is_2d=shape[0] == 1)


def test_the_patch_covers_a_small_scan_and_divides():
    plan = make_plan(found((35, 50, 35)), PlanOverrides(), ENCODER)
    assert plan.patch == (40, 56, 40)
    assert 2 <= plan.batch <= 12


def test_a_big_scan_is_shrunk_to_the_budget_at_its_own_aspect():
    d, h, w = make_plan(found((400, 512, 512)), PlanOverrides(), ENCODER).patch
    assert d * h * w < 1.3 * 96**3
    assert h == w >= d
    flat = make_plan(found((1, 1000, 2000)), PlanOverrides(), build(ViTConfig(size="Ti")))
    assert flat.patch[0] == 1
    assert flat.patch[1] % 16 == flat.patch[2] % 16 == 0


def test_impossible_patches_are_refused():
    for patch in ((40, 56, 41), (1, 64, 64)):
        with pytest.raises(UserError, match=r"plan\.patch"):
            make_plan(found((35, 50, 35)), PlanOverrides(patch=patch), ENCODER)


def cases_in(folder):
    return [Case(path.name, path.name, (scan_file(path),), None) for path in sorted(folder.iterdir())[:3]]


def test_what_is_known_of_a_case_is_not_read_again(volumes, monkeypatch):
    cases = cases_in(volumes / "images")
    read = fingerprint(cases, {})
    known = {case.key: Grid("known", (20, 16, 18), case.image.read().spacing) for case in cases}
    monkeypatch.setattr("scanfoundry.finetune.cases.sources.FileScan.read", lambda self: pytest.fail(f"{self} is read"))
    assert fingerprint(cases, known) == read
    mixed = known | {cases[1].key: Grid("the slice", (1, 16, 18), (2.0, 1.5, 1.5))}
    with pytest.raises(UserError, match="the slice is a single slice"):
        fingerprint(cases, mixed)


def test_an_edited_plan_is_read_back_and_overrides_win(volumes, tmp_path):
    path = tmp_path / "plan.json"
    first = settle_plan(path, cases_in(volumes / "images"), {}, PlanOverrides(), ENCODER)
    assert first.fingerprint.shape == (20, 16, 18)
    assert first.spacing == pytest.approx((2.0, 1.5, 1.5))
    edited = json.loads(path.read_text()) | {"patch": [16, 16, 24]}
    path.write_text(json.dumps(edited))
    assert settle_plan(path, [], {}, PlanOverrides(), ENCODER).patch == (16, 16, 24)
    assert settle_plan(path, [], {}, PlanOverrides(batch=7), ENCODER).batch == 7
    path.write_text("{")
    with pytest.raises(UserError, match="not a plan"):
        settle_plan(path, [], {}, PlanOverrides(), ENCODER)
    path.write_text('{"patch": [8, 8, 8]}')
    with pytest.raises(UserError, match=r"plan\.json is not a plan: spacing: is missing; .*; mend or delete it"):
        settle_plan(path, [], {}, PlanOverrides(), ENCODER)
