"""The parts of MONAI that detection uses, imported in the one order that works. Other tasks do without: it takes long.

`import monai` imports all of its submodules, the detection ones bind torchvision's at that moment: torchvision must
import before, which beside a CPU-only torch takes `ensure_torchvision`.
"""

from scanfoundry.backbones.torchvision_cpu import ensure_torchvision

ensure_torchvision()

from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector  # noqa: E402
from monai.apps.detection.networks.retinanet_network import RetinaNet  # noqa: E402
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape  # noqa: E402
from monai.data.box_utils import non_max_suppression  # noqa: E402
from monai.losses.giou_loss import BoxGIoULoss  # noqa: E402

__all__ = [
    "AnchorGeneratorWithAnchorShape",
    "BoxGIoULoss",
    "RetinaNet",
    "RetinaNetDetector",
    "non_max_suppression",
]
