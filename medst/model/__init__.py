"""From batches to embeddings: experts, encoders, heads, weights in and out. No losses here.

`medst.py` puts the model together; `routing.py` decides which expert serves which token, `experts.py` holds
the experts, `image.py` and `text.py` the encoders, `heads.py` the projections, `weights.py` all reading and
writing of weights, `accounting.py` the costs. `joint.py` says what evaluation asks of a model; `biovil_t.py` is another
one that answers it. What must not live here: losses, optimisers, data reading.
"""

from medst.model.medst import MedST
from medst.model.outputs import Embeddings, ImageEmbeddings, ImageFeatures, TextEmbeddings, TextFeatures

__all__ = ["Embeddings", "ImageEmbeddings", "ImageFeatures", "MedST", "TextEmbeddings", "TextFeatures"]
