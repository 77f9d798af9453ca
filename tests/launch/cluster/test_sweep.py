"""Words with several values become runs; brackets and quotes protect commas."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.launch.cluster import sweep


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("[8,16],[4, 4]", ["[8,16]", "[4, 4]"]),
        ("[8,16]", ["[8,16]"]),
        ('"Smith, J"', ['"Smith, J"']),
        ("'a,b', c", ["'a,b'", "c"]),
        ("{a: 1, b: [2,3]},null", ["{a: 1, b: [2,3]}", "null"]),
        ("Crohn's,other", ["Crohn's", "other"]),
        ("a,", ["a", ""]),
    ],
)
def test_only_top_level_commas_split(text: str, parts: list[str]):
    assert sweep.split(text) == parts


def test_the_product_of_all_choices_in_order():
    members = sweep.expand(["steps=5", "optimiser.lr=1e-3,1e-4", "seed=1,2"])
    assert [m.name for m in members] == ["lr=1e-3_seed=1", "lr=1e-3_seed=2", "lr=1e-4_seed=1", "lr=1e-4_seed=2"]
    assert members[2].words == ("steps=5", "optimiser.lr=1e-4", "seed=1")


def test_without_several_values_there_is_one_run_in_the_run_folder_itself():
    assert sweep.expand(["steps=5", "data.crop_3d=[8,16,16]"]) == [
        sweep.SweepRun("", ("steps=5", "data.crop_3d=[8,16,16]"))
    ]
    assert sweep.expand([]) == [sweep.SweepRun("", ())]


def test_names_are_as_long_as_needed_to_tell_keys_and_values_apart():
    members = sweep.expand(["objective.name=mae,spark", "backbone.name=vit,stunet"])
    assert members[0].name == "objective.name=mae_backbone.name=vit"
    names = [m.name for m in sweep.expand(["data.crop_3d=[8,8,8],[8;8;8],[8 8 8]"])]
    assert len(set(names)) == 3
    assert all(set(name) <= set(string.ascii_letters + string.digits + ".=+_-") for name in names)
    assert len(sweep.expand([f"citation={'a' * 300},{'a' * 301}"])[0].name) <= 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run_dir=a,b"], "run_dir"),
        (["seed=1,,2"], "empty"),
        (["seed=1,1"], "repeated"),
        (["seed=1,2", "seed=3,4"], "twice"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(words: list[str], said: str):
    with pytest.raises(UserError, match=said):
        sweep.expand(words)


VALUE = st.one_of(
    st.text(string.ascii_letters + string.digits + ".-+_", min_size=1, max_size=6),
    st.lists(st.integers(0, 99), min_size=1, max_size=3).map(lambda numbers: str(numbers)),
)


@given(st.lists(VALUE, min_size=1, max_size=4, unique=True), st.lists(VALUE, min_size=1, max_size=3, unique=True))
def test_every_combination_once_each_in_a_folder_of_its_own(first: list[str], second: list[str]):
    members = sweep.expand([f"a.x={','.join(first)}", f"b={','.join(second)}"])
    assert [m.words for m in members] == [(f"a.x={x}", f"b={y}") for x in first for y in second]
    assert len({m.name for m in members}) == len(members)
    assert all("/" not in m.name and len(m.name) <= 100 for m in members)


def test_the_list_keeps_the_runs_of_an_earlier_submission(tmp_path):
    sweep.write(tmp_path, sweep.expand(["seed=1,2"]))
    sweep.write(tmp_path, sweep.expand(["seed=2,3"]))
    assert list(sweep.runs(tmp_path)) == ["seed=1", "seed=2", "seed=3"]
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json"):
        sweep.runs(tmp_path)
