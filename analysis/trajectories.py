"""Image features of sequences over time, in two dimensions.

What lives here: the t-SNE of tracked embeddings and its drawing. What must not: reading the store
(analysis/results.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from analysis.pictures import Arrays, all_withheld
from analysis.statistics import Floats
from analysis.style import BLACK, GREY, PAGE_WIDTH, SEQUENTIAL, Picture, style
from analysis.text import broken
from analysis.tidy import Study

EMBEDDINGS = "embeddings/temporal"
"""Arrays `embeddings` (S, T, E) unit length, `days` (S, T)."""
PERPLEXITY = 30.0


def tsne(embeddings: Floats, seed: int = 0) -> Floats:
    """(n, E) -> (n, 2) by t-SNE of cosine distances; the same input gives the same picture."""
    perplexity = min(PERPLEXITY, max(2.0, (len(embeddings) - 1) / 4))
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500, n_jobs=1)
    return np.asarray(model.fit_transform(embeddings.astype(np.float64)), dtype=np.float64)


def neighbour_share(embeddings: Floats, num_neighbours: int = 5) -> tuple[float, float]:
    """Share of nearest neighbours that are of the same patient, and that share if neighbours were drawn at random.

    Args:
        embeddings: (S, T, E), one row of T studies a patient.
    """
    num_sequences, length, width = embeddings.shape
    flat = embeddings.reshape(-1, width)
    patient = np.repeat(np.arange(num_sequences), length)
    count = min(num_neighbours, len(flat) - 1)
    neighbours = NearestNeighbors(n_neighbors=count + 1).fit(flat).kneighbors(return_distance=False)
    # Equal embeddings may push a point out of its own list: it is taken out wherever it stands.
    others = [[place for place in row if place != own][:count] for own, row in enumerate(neighbours)]
    share = float(np.mean([patient[row] == patient[own] for own, row in enumerate(others)]))
    return share, (length - 1) / (len(flat) - 1)


def tsne_over_time(study: Study, tracked: Mapping[str, Arrays], is_withheld: bool, seed: int = 0) -> Picture | None:
    """One panel an arm: studies as points coloured by their place in the sequence, a patient's joined by a line.

    Args:
        tracked: arm -> arrays under `EMBEDDINGS`, the baseline first.

    Returns:
        None where nothing was tracked.
    """
    if not tracked:
        return all_withheld(study, "tsne", "Image features over time") if is_withheld else None
    shares = []
    with style():
        figure, grid = plt.subplots(1, len(tracked), squeeze=False,
                                    figsize=(PAGE_WIDTH * (1.0 if len(tracked) > 1 else 0.62),
                                             PAGE_WIDTH / max(len(tracked), 2) + 0.25))
        for axes, (arm, arrays) in zip(grid[0], tracked.items(), strict=True):
            embeddings = arrays["embeddings"].astype(np.float64)
            num_sequences, length, width = embeddings.shape
            places = tsne(embeddings.reshape(-1, width), seed).reshape(num_sequences, length, 2)
            share, random_share = neighbour_share(embeddings)
            shares.append(f"{arm} {share * 100:.0f} % (at random {random_share * 100:.1f} %)")
            axes.add_collection(LineCollection(list(places), colors=GREY, linewidths=0.25, alpha=0.25, zorder=1))
            points = axes.scatter(places[..., 0], places[..., 1], c=np.tile(np.arange(1, length + 1), num_sequences),
                                  cmap=plt.get_cmap(SEQUENTIAL, length), vmin=0.5, vmax=length + 0.5, s=5,
                                  linewidths=0.2, edgecolors="white", zorder=2)
            axes.set_title(broken(arm, 34))
            axes.set_xlabel("t-SNE 1 (no unit)")
            axes.set_ylabel("t-SNE 2 (no unit)")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_box_aspect(1)
            axes.spines[:].set_edgecolor(BLACK)
        bar = figure.colorbar(points, ax=grid[0].tolist(), fraction=0.03, pad=0.02, shrink=0.7,
                              ticks=range(1, length + 1))
        bar.outline.set_visible(False)
        bar.set_label("Study in the sequence")
    return Picture("tsne", figure,
                   f"Study {study.plan.name}. Image features of {num_sequences} sequences of {length} studies, "
                   f"held-out patients, t-SNE (perplexity {PERPLEXITY:.0f}); lines join the studies of a patient; "
                   f"seed {seed}, n = 1 trial an arm. Distances between clusters mean nothing. Of the five nearest "
                   f"neighbours in the full space, of the same patient: {'; '.join(shares)}.", study.plan.name)
