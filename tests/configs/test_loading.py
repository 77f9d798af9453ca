"""Configurations: overrides, unknown keys with the nearest name, unions, recipes."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from scanforge.configs.base import Config
from scanforge.configs.errors import UserError
from scanforge.configs.loading import check, find, load, override


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
    from scanforge.configs.loading import recipes
    from scanforge.finetune.config import FinetuneConfig
    from scanforge.launch.cluster import ClusterConfig
    from scanforge.pretrain.config import PretrainConfig

    models = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "cluster": ClusterConfig}
    for kind, model in models.items():
        assert recipes(kind)
        for path in recipes(kind).values():
            assert path.read_text().startswith("#"), f"{path} has no header"
            words = ["run_dir=x"] if kind != "cluster" else []
            if kind == "finetune":  # what every recipe's header says that the user adds
                words += ["data.images=x", "data.labels=y", "checkpoint=z"]
            load(model, path, kind, words)
