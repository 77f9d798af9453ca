"""What README and docs promise about themselves: short sentences, and paths that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
MOST_WORDS = 25
MOST_LINES = {"architecture.md": 125}  # two screens
FOLDERS = r"(?:configs|backbones|datasets|pretrain|finetune|launch|tests|benchmarks|docs|\.github|\.ci)"
ID = {"ids": lambda path: str(path.relative_to(ROOT))}


def sentences(text: str) -> list[str]:
    """The sentences of a Markdown page, without code blocks, tables, headings and comments.

    An item of a list ends a sentence; a piece of code counts as one word, a link as its text.
    """
    text = re.sub(r"^```.*?^```", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(\||#).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    found = [part for block in re.split(r"\n\s*\n", text) for part in re.split(r"(?<=[.!?])[\"')*_]*\s+", block)]
    return [" ".join(part.split()) for part in found if part.strip()]


def words(sentence: str) -> int:
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def test_sentences_are_found():
    text = "# A heading\n\nOne `a. b` [two. three](x.md).\nFour\nfive!\n\n| a. |\n```\nx. y\n```\n- six\n- seven: 1.5\n"
    assert sentences(text) == ["One code two.", "three.", "Four five!", "six", "seven: 1.5"]
    assert words("One – two, `three`") == 3


@pytest.mark.parametrize("page", PAGES, **ID)
def test_sentences_are_short(page: Path):
    long = [each for each in sentences(page.read_text(encoding="utf-8")) if words(each) > MOST_WORDS]
    assert long == []


@pytest.mark.parametrize("name", MOST_LINES)
def test_pages_are_short(name: str):
    assert len((ROOT / "docs" / name).read_text().splitlines()) <= MOST_LINES[name]


@pytest.mark.parametrize("page", PAGES, **ID)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, heading = target.partition("#")
            linked = (page.parent / path) if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if heading:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert heading in [each.lower().replace(" ", "-") for each in headings], f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, **ID)
def test_paths_exist(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for named in re.findall(rf"`({FOLDERS}/[^`\s]*)`", text):
        pattern = re.sub(r"<[^>]*>", "*", named).rstrip("/")
        assert list(ROOT.glob(pattern)), f"{page.name} names {named}"


@pytest.mark.parametrize("path", [*PAGES, *RECIPES, *SCRIPTS], **ID)
def test_no_folder_that_others_lack(path: Path):
    assert "../shared" not in path.read_text(encoding="utf-8")
