"""Which units are pruned, given scores and a budget.

Scores and a target come in; one boolean tensor a group or weight (`Keep`) goes out. Counts are exact.
Start with `select.py`.
"""
