"""Which view expert serves which tokens, and the order of tokens that makes this cheap.

All image tokens of a batch lie in one matrix (tokens x width): first the tokens of the frontal images
(class token and patches, image by image), then the patches of the laterals. The pairs are ordered so that
pairs with a lateral come first (attention then works on slices, and nothing is computed for laterals that do
not exist), and inside that by expert (every expert then works on few contiguous slices).

What must not live here: modules and weights.

Legend: B pairs, L laterals, P patches of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

EXPERT_OF_VIEW: dict[int, tuple[int, int, int, int]] = {
    1: (0, 0, 0, 0),
    2: (0, 0, 1, 1),
    3: (0, 1, 2, 2),
    4: (0, 1, 2, 3),
}
"""Number of experts -> expert of each view code (AP, PA, LL, LATERAL)."""


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of a batch lie."""

    frontal_order: tuple[int, ...]
    """The pair at each place: those with a lateral first."""
    lateral_order: tuple[int, ...]
    """The lateral (as given) at each place, in the order of its pair."""
    num_patches: int
    segments: tuple[tuple[int, int], ...]
    """(expert, number of tokens) of each contiguous slice of tokens, in order."""

    @property
    def num_pairs(self) -> int:
        return len(self.frontal_order)

    @property
    def num_laterals(self) -> int:
        return len(self.lateral_order)


def expert_share(layouts: Sequence[TokenLayout], num_experts: int) -> list[float]:
    """Share of the tokens that each expert serves."""
    counts = [0] * num_experts
    for layout in layouts:
        for expert, size in layout.segments:
            counts[expert] += size
    return [count / sum(counts) for count in counts]


def arrange(
    views: Sequence[int],
    lateral_views: Sequence[int],
    lateral_rows: Sequence[int],
    num_patches: int,
    num_experts: int,
) -> TokenLayout:
    """Order pairs and laterals.

    Args:
        views: B view codes of the images with a class token (a lateral encoded alone has its own code here).
        lateral_views: L view codes.
        lateral_rows: L rows of the pairs to which the laterals belong, each at most once.
        num_patches: P.
        num_experts: 1 to 4, as in EXPERT_OF_VIEW.
    """
    expert_of = EXPERT_OF_VIEW[num_experts]
    experts = [expert_of[view] for view in views]
    lateral_of_row = {row: lateral for lateral, row in enumerate(lateral_rows)}

    def snake(row: int) -> tuple[int, int]:
        # Laterals alternate direction from one frontal expert to the next, so that equal neighbours merge.
        lateral = expert_of[lateral_views[lateral_of_row[row]]]
        return experts[row], lateral if experts[row] % 2 == 0 else -lateral

    paired = sorted(lateral_of_row, key=snake)
    single = sorted((row for row in range(len(views)) if row not in lateral_of_row), key=lambda row: -experts[row])
    frontal_order = (*paired, *single)
    lateral_order = tuple(lateral_of_row[row] for row in paired)
    sizes = [(experts[row], num_patches + 1) for row in frontal_order]
    sizes += [(expert_of[lateral_views[lateral]], num_patches) for lateral in lateral_order]
    segments = tuple(
        (expert, sum(size for _, size in run)) for expert, run in groupby(sizes, key=lambda item: item[0])
    )
    return TokenLayout(frontal_order, lateral_order, num_patches, segments)
