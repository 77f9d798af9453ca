"""YAML in which something stands twice: refused, since the parser alone lets the last one win."""

from pathlib import Path

import pytest

from scanfoundry.configs.parsing.plain_yaml import plain_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nsteps: 2\nlr: 3", r"'lr' stands twice in one mapping \(lines 1 and 3\); keep one of them"),
        ("a: {b: 1, b: 2}", r"'b' stands twice in one mapping \(line 1\)"),
        ("a:\n- b: 1\n  c: 2\n  'b': 3", r"'b' stands twice in one mapping \(lines 2 and 4\)"),
        ("1: liver\n1.0: spleen", "'1.0' stands twice"),
        ("x: &x {b: 1, b: 2}\ny: *x", "'b' stands twice"),
    ],
)
def test_a_key_stands_once(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plain_yaml(text)


def test_what_is_merged_may_be_said_again_and_names_recur_elsewhere() -> None:
    text = "base: &base {lr: 1, steps: 2}\nmore: &more {<<: *base, lr: 3}\nlast: {<<: [*more, *base], steps: 4}\nlr: 5"
    assert plain_yaml(text) == {
        "base": {"lr": 1, "steps": 2}, "more": {"lr": 3, "steps": 2}, "last": {"lr": 3, "steps": 4}, "lr": 5
    }  # fmt: skip
    assert plain_yaml("1: a\n'1': b") == {1: "a", "1": "b"}
    assert plain_yaml("") is None


def test_every_recipe_loads() -> None:
    recipes = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))
    assert len(recipes) > 10
    assert all(isinstance(plain_yaml(path.read_text(encoding="utf-8")), dict) for path in recipes)
