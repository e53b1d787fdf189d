"""Med-ST: spatial and temporal pre-training on chest X-ray studies, and its ablation platform.

This package knows one trial. Many trials live in `sweeps/`, what was tracked of them is read in
`analysis/`. The rooms, in the only order in which they may import each other:

    config -> records -> data -> model -> objectives -> training -> evaluation -> trial -> tracking -> cli
"""

__version__ = "0.1.0"
