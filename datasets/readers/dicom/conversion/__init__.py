"""Conversion by dcm2niix, and the checks that what comes out is what the headers describe."""
