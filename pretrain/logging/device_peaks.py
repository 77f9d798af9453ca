"""What devices can do at most, by their makers' data sheets: dense products of matrices, without sparsity."""

import re

# TFLOPS at bf16, at fp32 through TF32, at fp32 itself. None: the device has none, or its maker does not say.
PEAKS: dict[str, tuple[float | None, float | None, float | None]] = {
    "B200": (2250, 1125, None),
    "GH200": (989.4, 494.7, 66.9),
    "H200": (989.4, 494.7, 66.9),
    "H100 NVL": (835, 417.5, 60),
    "H100 PCIe": (756, 378, 51),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312, 156, 19.5),
    "A800": (312, 156, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A30": (165, 82, 10.3),
    "A10": (125, 62.5, 31.2),
    "A10G": (70, 35, 31.5),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "V100": (None, None, 15.7),
    "T4": (None, None, 8.1),
    "MI300X": (1307.4, 653.7, 163.4),
}
PART = "MIG"  # of a device, whose share of the peak its name does not tell


def peak_tflops(device: str, precision: str, tf32: bool) -> float | None:
    """The peak of a device at a precision; None where it is not known.

    Args:
        device: its name, as torch gives it.
        precision: 'bf16' or 'fp32'.
        tf32: whether fp32 products may be computed through TF32.
    """
    if re.search(rf"\b{PART}\b", device):
        return None
    named = [name for name in PEAKS if re.search(rf"\b{re.escape(name)}\b", device)]
    if not named:
        return None
    bf16, through_tf32, fp32 = PEAKS[max(named, key=len)]
    return bf16 if precision == "bf16" else through_tf32 if tf32 and through_tf32 else fp32
