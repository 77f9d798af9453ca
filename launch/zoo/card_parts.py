"""What every model card has."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

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
class Facts:
    """What the card says beside the description of the model."""

    name: str
    licence: str
    inherited: str
    intended_use: str
    citation: str
    repository: str = "USER/NAME"  # on the hub


def joined(*parts: str) -> str:
    """Paragraphs as one page."""
    return "\n\n".join(part for part in parts if part) + "\n"


def header(facts: Facts, tags: list[str], pipeline: str | None) -> str:
    """The YAML at the top, which the hub reads."""
    fields: dict[str, Any] = {}
    if facts.licence.lower() in HUB_LICENCES:
        fields["license"] = facts.licence.lower()
    elif facts.licence:
        fields |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", facts.licence.lower()).strip("-")}
    fields |= {"library_name": "scanfoundry", "tags": sorted({tag.lower() for tag in tags})}
    if pipeline:
        fields["pipeline_tag"] = pipeline
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()}\n---"


def backbone_in_words(config: dict[str, Any]) -> str:
    """A backbone's configuration in one line."""
    rest = ", ".join(f"{key} {json.dumps(value).strip(chr(34))}" for key, value in config.items() if key != "name")
    return f"`{config['name']}` ({rest})"


def by(sizes: Iterable[float]) -> str:
    """Sizes as '2 x 1.5 x 1.5'."""
    return " x ".join(f"{size:g}" for size in sizes)


def numbers(figures: list[str]) -> list[str]:
    """The table of numbers, or that there is none."""
    return ["\n".join(figures)] if figures else ["None were measured or given."]


def terms(facts: Facts) -> str:
    """The licence in a sentence, with that of the weights it started from."""
    licence, inherited = for_markdown(facts.licence), for_markdown(facts.inherited)
    own = f"Licence: {licence}." if licence else "No licence was given: ask before you use it."
    return f"{own} It started from weights under: {inherited}." if inherited else own


def citation(facts: Facts) -> str:
    """What to cite."""
    return for_markdown(facts.citation) or "No citation was given."


def intended(facts: Facts, otherwise: str) -> str:
    """What it was made for."""
    said = for_markdown(facts.intended_use)
    return said or f"No intended use was stated by whoever exported it; it was made for {otherwise}."
