"""Pure functions of embeddings: the losses, the curriculum, retrieval accuracy.

`contrast.py` global contrast, `alignment.py` local alignment, `temporal.py` forward mapping classification (FMC)
and reverse mapping regression (RMR), `prototypes.py` MGCA's prototypes, `curriculum.py` schedules, `objective.py` the
sum of them all, the one place here that reads a config. What must not live here: modules with state, logging, devices.
"""

from medst.objectives.objective import Objective, medst_objective

__all__ = ["Objective", "medst_objective"]
