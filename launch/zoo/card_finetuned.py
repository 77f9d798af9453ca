"""The model card of a fine-tuned model."""

from typing import Any

from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.export.escaping import for_markdown
from scanfoundry.launch.zoo.card_parts import (
    LIMITS,
    CardFacts,
    citation,
    describe_backbone,
    header,
    intended_use_sentence,
    join_paragraphs,
    licence_sentence,
    metrics_table,
    patients_sentence,
    sizes_text,
)


def finetuned_card(described: dict[str, Any], facts: CardFacts, figures: list[str]) -> str:
    """The card of a fine-tuned model; `described` is its `model.json`."""
    origin = described.get("origin", {})
    task, plan = described["task"]["name"], described["plan"]
    trained = ", ".join(for_markdown(f"{key} {value}") for key, value in described.get("trained", {}).items())
    classes = ", ".join(map(for_markdown, described["classes"])) or "not named"
    return join_paragraphs(
        header(facts, ["medical-imaging", task, described["backbone"]["name"]], _pipeline_tag(task)),
        f"# {for_markdown(facts.name)}",
        f"A model for {task} of {_modality(described['modality'])} scans, on "
        f"{describe_backbone(described['backbone'])}. Classes: {classes}. "
        f"Trained: {trained or 'not recorded'}.",
        "## Use",
        intended_use_sentence(facts, "research on scans like those it was trained on"),
        LIMITS,
        "Nothing is known about scans of other devices, protocols or populations than those of its training. "
        "Which pre-trained weights it began from is not recorded in the run.",
        patients_sentence(origin.get("patients", 0), origin.get("patients_withheld", 0)),
        "## Load",
        "```\nscanfoundry predict --model FOLDER --input SCANS --out PREDICTIONS\n```",
        "`checkpoint=FOLDER` starts another fine-tuning from all its parts, `init: FOLDER` a pre-training."
        if origin
        else "",
        "## Preprocessing",
        f"Grid {sizes_text(plan['spacing'])} mm, patches of {sizes_text(plan['patch'])} (D, H, W). "
        "Intensities as `model.json` says; `scanfoundry predict` does all of it.",
        "## Numbers",
        *metrics_table(figures),
        "## Licence and citation",
        licence_sentence(facts),
        citation(facts),
        "## Files",
        f"`model.safetensors` (sha256 `{described['weights_sha256']}`; every part of the network), `model.json`"
        f"{' and `patients.txt`' if origin else ''}; all sums are in `SHA256SUMS`.",
    )


def _pipeline_tag(task: str) -> str | None:
    """The name that the Hugging Face Hub has for the task; None of a plug-in's task that is not loaded."""
    return tasks()[task].config.pipeline_tag if task in tasks() else None


def _modality(name: str) -> str:
    return "unknown" if name == "unknown" else for_markdown(name.upper())
