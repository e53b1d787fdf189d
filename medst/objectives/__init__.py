"""Pure functions of embeddings: the losses, the curriculum, retrieval accuracy. No modules with state, no config."""
