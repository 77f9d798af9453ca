"""Names and words that are code to whoever reads an export stay names and words: nothing of them runs or loads."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from scanfoundry.finetune.export.bundle import Terms, export_bundle
from scanfoundry.finetune.export.escaping import for_markdown, for_monai
from scanfoundry.finetune.model_file import save_model


def hostile(trap):
    """Texts that make a file, load one, or break the reader where they are taken for code."""
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    return [
        f"${code}", f"$import os; {code}", "$", "$@network", "@network", "@##network", "%secret.json::key", "%", "%#x",
        "a @##b", "a %::b", " $x", "{x}", "_target_", "[red]", "'", '"', "a\nb", "\\", "</script><script>x", "<x",
    ]  # fmt: skip


def all_strings(value):
    if isinstance(value, dict):
        return [text for inner in value.values() for text in all_strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in all_strings(inner)]
    return [value] if isinstance(value, str) else []


def parsed(content, folder):
    """What MONAI makes of `content` as a bundle's metadata, everything in it resolved and evaluated."""
    (folder / "metadata.json").write_text(json.dumps(content))
    parser = ConfigParser()
    parser.read_meta(str(folder / "metadata.json"))
    parser["network"] = 7  # what a reference would find
    parser.parse(reset=True)
    return parser.get_parsed_content("_meta_")


def test_no_name_in_a_bundle_is_code(make_run, model_of, spec_of, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    names = hostile(trap)
    spec = spec_of("classification", (1, 32, 32)).model_copy(update={"classes": names, "modality": "$mr"})
    save_model(tmp_path / "run", [model_of(spec)[1]], spec)
    word = names[0]
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", Terms(word, word, word))
    monkeypatch.chdir(bundle)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    found = parsed(metadata, tmp_path)
    assert not trap.exists()
    told = found["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert len(told) == len(names)
    for name, shown in zip(names, told.values(), strict=True):
        assert re.sub(r"[\s']|::|#", "", name) == re.sub(r"[\s']|::|#", "", shown)
    assert word in found["copyright"]
    # The whole program, whose preprocessing.json is read as plain JSON.
    run = ConfigParser()
    run.read_config(str(bundle / "configs/inference.json"))
    run.read_meta(str(bundle / "configs/metadata.json"))
    run["bundle_root"] = str(bundle)
    assert run.get_parsed_content("about")["classes"] == names
    assert not trap.exists()


TEXTS = st.text(st.sampled_from("$@%#: _a{}'"), max_size=8) | st.text(max_size=20)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(TEXTS, max_size=4))
def test_monai_takes_any_text_for_a_text(tmp_path_factory, texts):
    content = {"a": texts, "b": {str(number): {"c": text} for number, text in enumerate(texts)}}
    found = parsed(for_monai(content), tmp_path_factory.getbasetemp())
    assert all(isinstance(text, str) for text in all_strings(found))
    assert len(all_strings(found)) == len(all_strings(content))


def test_ordinary_words_stay_as_they_are():
    for text in ("left lung", "40 % of it", "Us et al., us@example.org", "CC-BY-4.0", "50$", "a_b", "T1 (Gd)", "Größe"):
        assert for_monai({"a": text}) == {"a": text}
    for text in ("left lung", "40 % of it", "Us et al., us@example.org", "CC-BY-4.0", "a_b", "T1 (Gd)", "Größe"):
        assert for_markdown(text) == text


@pytest.mark.parametrize(
    "text",
    ["# x", "\n\n## x", "<img src=x onerror=alert(1)>", "[a](javascript:x)", "![](http://x)", "`x`", "a | b", "---\nx",
     "```\nx", "- x", "* x", "===", "> x", "\\<b>"],
)  # fmt: skip
def test_markdown_shows_any_text_and_obeys_none(text):
    markdown = pytest.importorskip("markdown_it")
    html = markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(for_markdown(text))
    assert set(re.findall(r"<(\w+)", html)) == {"p"}
    assert re.sub(r"\s", "", text) == re.sub(
        r"\s", "", html[3:-5].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    )
