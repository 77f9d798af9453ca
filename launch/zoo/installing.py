"""From a file of others to a release of ours, in one rename."""

import logging
import shutil
from importlib.metadata import version
from pathlib import Path

from scanfoundry.backbones.foreign import Report, load_foreign_parts
from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import BackboneConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.launch.zoo.catalogue import CatalogueModel
from scanfoundry.launch.zoo.origin import FILE, Origin
from scanfoundry.launch.zoo.verifying import VerifiedFile

logger = logging.getLogger(__name__)


def install(entry: CatalogueModel, fetched: VerifiedFile, target: Path, work: Path, in_channels: int | None) -> None:
    """Convert a verified file and put the release in place; `work` is a folder of ours on the same disk."""
    parts, info, report = load_foreign_parts(fetched.path, in_channels=in_channels or entry.in_channels)
    if info.weights_sha256 != fetched.sha256:
        raise UserError(f"{fetched.path} was replaced after it was verified: its sha256 is {info.weights_sha256}")
    check_same(entry, info.backbone, fetched.path)
    built = work / "release"
    shutil.rmtree(built, ignore_errors=True)
    save_release(built, parts, described(entry, info), [])  # whom others trained on is unknown
    origin = _origin(entry, fetched, report)
    (built / FILE).write_text(origin.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if target.exists():  # an empty folder, which `installed` has let pass
        target.rmdir()
    built.rename(target)
    logger.info("%s", report)
    if fetched.verified:
        logger.info("verified by %s (%s)", fetched.verified, entry.download.evidence)
    else:
        logger.warning("NOT verified: no checksum is published; its sha256 is %s (kept in %s)", fetched.sha256, FILE)
    terms = {"no": ": NO commercial use", "unknown": ": ask whether commercial use is allowed"}
    commercial = terms.get(entry.commercial_use, "")
    logger.info("licence %s%s; cite %s", entry.licence, commercial, entry.citation)
    if entry.attribution:
        logger.info("%s", entry.attribution)


def check_same(entry: CatalogueModel, backbone: BackboneConfig, path: Path) -> None:
    """UserError where a file turns out to be of another backbone than the catalogue says."""
    found = backbone.model_dump(mode="json")
    for key, value in entry.backbone.items():
        if found.get(key) != value:
            raise UserError(
                f"{path} is no {entry.name}: its {key} is {found.get(key)}, the catalogue's is {value}; "
                "give the file of that model"
            )


def described(entry: CatalogueModel, info: ReleaseInfo) -> ReleaseInfo:
    """The description that the file's own keys gave, with what the catalogue knows."""
    facts = {
        "objective": entry.objective,
        "licence": entry.licence,
        "citation": entry.citation,
        "spacing_mm": entry.spacing_mm,
        "versions": {name: version(name) for name in ("scanfoundry", "torch")},
    }
    return info.model_copy(update=facts)


def _origin(entry: CatalogueModel, fetched: VerifiedFile, report: Report) -> Origin:
    return Origin(
        name=entry.name,
        title=entry.title,
        page=entry.page,
        fetched_from=fetched.origin,
        file=entry.download.file,
        bytes=fetched.bytes,
        sha256=fetched.sha256,
        verified_by=fetched.verified,
        trained_on=entry.trained_on,
        preprocessing=entry.preprocessing,
        licence=entry.licence,
        commercial_use=entry.commercial_use,
        attribution=entry.attribution,
        citation=entry.citation,
        report=str(report),
    )
