"""Checks compiled operators against referees, bit for bit.

`verify` is the whole check. Who the referees are stands in `referees`; where they are known to be
wrong, and why, in `deviations`; what an operator is called with, in `cases` and `shapes`.
"""

from __future__ import annotations

from relu_ops.verification.cases import Case, random_values, special_values
from relu_ops.verification.checking import Progress, verify
from relu_ops.verification.compare import all_same, same, show_bits, ulp_distance
from relu_ops.verification.report import Report, Row

__all__ = [
    "Case",
    "Progress",
    "Report",
    "Row",
    "all_same",
    "random_values",
    "same",
    "show_bits",
    "special_values",
    "ulp_distance",
    "verify",
]
