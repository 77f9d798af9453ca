"""What every model card has."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scanfoundry.finetune.export.escaping import for_markdown

# Identifiers of the Hugging Face hub; any other licence is 'other' with its name.
HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "unlicense",
}  # fmt: skip
LIMITS = (
    "Not a medical device: not tested, cleared or approved for diagnosis, treatment or any other clinical use. "
    "It must not decide about patients."
)


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside the description of the model."""

    name: str
    licence: str
    inherited: str
    intended_use: str
    citation: str
    repository: str = "USER/NAME"  # on the hub


def join_paragraphs(*parts: str) -> str:
    """Paragraphs as one page."""
    return "\n\n".join(part for part in parts if part) + "\n"


def header(facts: CardFacts, tags: list[str], pipeline: str | None) -> str:
    """The metadata at the top of the card, as the hub's own class writes it; what is not known is left out.

    Args:
        facts: whose licence goes into the metadata, under the hub's identifier or as 'other' with its name.
        tags: words to be found by; each is listed once, in small letters.
        pipeline: the hub's name of the task, or None.
    """
    from huggingface_hub import ModelCardData

    licence = facts.licence.lower()
    other = licence not in HUB_LICENCES
    data = ModelCardData(
        license=("other" if other else licence) if licence else None,
        license_name=re.sub(r"[^a-z0-9.-]+", "-", licence).strip("-") if licence and other else None,
        library_name="scanfoundry",
        pipeline_tag=pipeline,
        tags=sorted({tag.lower() for tag in tags}),
    )
    return f"---\n{data.to_yaml()}\n---"


def describe_backbone(config: dict[str, Any]) -> str:
    """A backbone's configuration in one line."""
    rest = ", ".join(f"{key} {json.dumps(value).strip(chr(34))}" for key, value in config.items() if key != "name")
    return f"`{config['name']}` ({rest})"


def sizes_text(sizes: Iterable[float]) -> str:
    """Sizes as '2 x 1.5 x 1.5'."""
    return " x ".join(f"{size:g}" for size in sizes)


def metrics_table(figures: list[str]) -> list[str]:
    """The table of numbers, or that there is none."""
    return ["\n".join(figures)] if figures else ["None were measured or given."]


def licence_sentence(facts: CardFacts) -> str:
    """The licence in a sentence, with that of the weights it started from."""
    licence, inherited = for_markdown(facts.licence), for_markdown(facts.inherited)
    own = f"Licence: {licence}." if licence else "No licence was given: ask before you use it."
    return f"{own} It started from weights under: {inherited}." if inherited else own


def citation(facts: CardFacts) -> str:
    """What to cite."""
    return for_markdown(facts.citation) or "No citation was given."


def intended_use_sentence(facts: CardFacts, otherwise: str) -> str:
    """What it was made for."""
    said = for_markdown(facts.intended_use)
    return said or f"No intended use was stated by whoever exported it; it was made for {otherwise}."


def patients_sentence(listed: int, withheld: int) -> str:
    """Whom the weights have seen, as far as the release says it."""
    if withheld:
        return (
            f"The hashes of {withheld} patients trained on are left out of this copy: whether a test "
            "patient was among them cannot be checked with it. Ask whoever published it."
        )
    if listed:
        return (
            f"`patients.txt` has keyed hashes (HMAC-SHA256) of the {listed} patients trained on. Without the "
            "site's key they name nobody; with it, `scanfoundry finetune` refuses to test on them."
        )
    return "Which patients it was trained on is not recorded."
