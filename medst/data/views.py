"""Names of the views and their codes.

What lives here: names alone, so that readers and preparation need no torch.
"""

from __future__ import annotations

VIEWS = ("AP", "PA", "LL", "LATERAL")
"""View names; the index is the view code. An unknown frontal counts as PA."""
FRONTAL_VIEWS = ("AP", "PA")
LATERAL_VIEWS = ("LL", "LATERAL")
