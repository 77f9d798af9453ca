"""`report.html`: the page, its figures, its pictures, and what a class was decided by."""
