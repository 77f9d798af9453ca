"""The 104 structures of TotalSegmentator v1 (Wasserthal et al. 2023) in the order of STU-Net's released heads.

That order is the alphabet's (`label_orders.json` of github.com/uni-medical/STU-Net), not TotalSegmentator's own.
"""

_SIDES = ("left", "right")
_PAIRED = (
    "adrenal_gland", "autochthon", "clavicula", "femur", "gluteus_maximus", "gluteus_medius", "gluteus_minimus",
    "heart_atrium", "heart_ventricle", "hip", "humerus", "iliac_artery", "iliac_vena", "iliopsoas", "kidney",
    "lung_lower_lobe", "lung_upper_lobe", "scapula",
)  # fmt: skip
_SINGLE = (
    "aorta", "brain", "colon", "duodenum", "esophagus", "face", "gallbladder", "heart_myocardium",
    "inferior_vena_cava", "liver", "lung_middle_lobe_right", "pancreas", "portal_vein_and_splenic_vein",
    "pulmonary_artery", "sacrum", "small_bowel", "spleen", "stomach", "trachea", "urinary_bladder",
)  # fmt: skip
_VERTEBRAE = (("C", 7), ("T", 12), ("L", 5))

CLASSES = tuple(
    sorted(
        (
            *_SINGLE,
            *(f"{name}_{side}" for name in _PAIRED for side in _SIDES),
            *(f"rib_{side}_{number}" for side in _SIDES for number in range(1, 13)),
            *(f"vertebrae_{region}{number}" for region, count in _VERTEBRAE for number in range(1, count + 1)),
        )
    )
)
