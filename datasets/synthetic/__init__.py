"""Scans that are drawn and not read: label maps of random shapes, and appearances of each.

After anatomix (Dey et al. 2025, "Learning general-purpose biomedical volume representations using randomized
synthesis", arXiv 2411.02372). They belong to no patient and have no licence, and there is no end of them. A scan is a
pure function of its seed, its shape and the configuration; `draw.draw_scan` gives it.
"""
