"""Configurations: overrides, unknown keys with the nearest name, unions, recipes."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from scanfoundry.configs.base import Config, Seed
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, find, load, override
from scanfoundry.configs.parsing.plain_yaml import plain_yaml


class Small(Config):
    name: Literal["small"] = "small"
    width: int = 1


class Large(Config):
    name: Literal["large"] = "large"
    depth: int = 2


class Item(Config):
    path: str


class Whole(Config):
    part: Annotated[Small | Large, Field(discriminator="name")] = Small()
    items: list[Item] = []
    steps: int = Field(default=1, ge=1)


class OneSeed(Config):
    seed: Seed = 0
    more: list[Seed] = []


def test_words_override_nested_keys_and_lists():
    content = override({"items": [{"path": "a"}]}, ["part.name=large", "part.depth=5", "items.0.path=b", "steps=3"])
    assert check(Whole, content, "test") == Whole(part=Large(depth=5), items=[Item(path="b")], steps=3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"stpes": 3}, "unknown key 'stpes'; did you mean 'steps'?"),
        ({"part": {"name": "large", "dept": 3}}, "did you mean 'depth'?"),
        ({"items": [{"pth": "x"}]}, "did you mean 'path'?"),
        ({"zzz": 3}, "valid keys: items, part, steps"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"part": {"name": "medium"}}, "'small', 'large'"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_helps(content: dict, said: str):
    with pytest.raises(UserError) as error:
        check(Whole, content, "run.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["steps", "=3", "items.x.path=b", "items.7.path=b", "steps=[1"])
def test_a_word_that_cannot_be_applied_is_refused(word: str):
    with pytest.raises(UserError):
        check(Whole, override({"items": [{"path": "a"}]}, [word]), "test")


def test_files_that_are_no_mapping_are_refused(tmp_path):
    for text in ("- a\n- b\n", "a: [1", "\x00"):
        path = tmp_path / "broken.yaml"
        path.write_text(text)
        with pytest.raises(UserError):
            load(Whole, path, "pretrain")


def test_the_nearest_recipe_is_named():
    with pytest.raises(UserError, match="neither a file nor a recipe"):
        find("no_such_recipe", "pretrain")
    assert find("example", "cluster").is_file()


def test_every_recipe_has_a_header_and_loads():
    from scanfoundry.configs.loading import recipes
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.launch.cluster.submit import ClusterConfig
    from scanfoundry.pretrain.config.run import PretrainConfig

    models = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "cluster": ClusterConfig}
    for kind, model in models.items():
        assert recipes(kind)
        for path in recipes(kind).values():
            assert path.read_text().startswith("#"), f"{path} has no header"
            words = ["run_dir=x"] if kind != "cluster" else []
            if kind == "finetune":  # what every recipe's header says that the user adds
                words += ["data.images=x", "data.labels=y", "checkpoint=z"]
            load(model, path, kind, words)


def bomb(levels: int) -> str:
    """Lists of which each names the one before nine times."""
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))]
    return "\n".join(lines)


ODD = {
    "deep": "steps: " + "[" * 100_000,
    "deep, whole": "steps: " + "[" * 5_000 + "]" * 5_000,
    "deep by indenting": "\n".join(" " * n + "a:" for n in range(3_000)),
    "aliases": bomb(12),
    "a circle": "a: &a [*a]",
    "a circle of keys": "a: &a {b: *a}",
    "no date": "steps: 2024-99-99",
    "no number": "steps: !!int x",
    "no float": "steps: !!float x",
    "no bool": "steps: !!bool x",
    "no timestamp": "steps: !!timestamp x",
    "digits": "steps: " + "9" * 5_000,
    "code": "steps: !!python/object/apply:os.system [true]",
    "large": "steps: 1 # " + "x" * 5_000_000,
    "zero": "steps: \0",
    "latin": "steps: \xe4",
    "list": "- 1",
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ODD)
def test_odd_yaml_is_one_line_that_names_the_file(tmp_path, kind: str):
    path = tmp_path / "run.yaml"
    path.write_bytes(ODD[kind].encode("latin-1" if kind == "latin" else "utf-8"))
    with pytest.raises(UserError) as error:
        load(Whole, path, "pretrain")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "word",
    ["steps=" + "[" * 50_000, "steps=2024-99-99", "steps=!!int x", "steps=&a [*a]", ".".join("a" * 5_000) + "=1",
     "items.\xb2.path=b", "items." + "9" * 5_000 + "=b", "steps=" + "9" * 5_000, "x" * 5_000],
    ids=lambda word: word[:12],
)  # fmt: skip
def test_odd_words_are_one_line(word: str):
    with pytest.raises(UserError) as error:
        check(Whole, override({"items": [{"path": "a"}]}, [word]), "test")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_aliases_that_save_typing_are_taken():
    text = "part: &p {name: large, depth: 3}\nitems: [&i {path: a}, *i, *i]\nsteps: 2"
    assert check(Whole, plain_yaml(text), "t") == Whole(part=Large(depth=3), items=[Item(path="a")] * 3, steps=2)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**40])
def test_numbers_beyond_64_bits_are_named_by_their_key(number: int):
    with pytest.raises(UserError, match=r"test: part\.width: .* does not fit into 64 bits"):
        check(Whole, {"part": {"width": number}}, "test")


@pytest.mark.parametrize("number", [-1, 2**64, -(2**64), 2**63])
def test_seeds_are_whole_numbers_from_0_on_of_63_bits(number: int):
    for model, content in ((OneSeed, {"seed": number}), (OneSeed, {"more": [0, number]})):
        with pytest.raises(UserError, match=r"seed|more"):
            check(model, content, "test")
    assert check(OneSeed, {"seed": 2**63 - 1}, "test").seed == 2**63 - 1
