"""Who made an object, in DICOM's words: this program and the model that it ran."""

from dataclasses import dataclass
from importlib.metadata import version

from highdicom import AlgorithmIdentificationSequence
from pydicom.sr.codedict import codes

NAME = "scanfoundry"


@dataclass(frozen=True)
class Maker:
    """`serial`: what tells this model from others, the start of a checksum. `task`: of the model."""

    serial: str
    task: str

    @property
    def version(self) -> str:
        """Of this program."""
        return version(NAME)

    def algorithm(self) -> AlgorithmIdentificationSequence:
        """Name, version and family, for segments."""
        return AlgorithmIdentificationSequence(
            NAME, codes.cid7162.ArtificialIntelligence, self.version, parameters={"model": self.serial}
        )
