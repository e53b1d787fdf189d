"""From batches to embeddings: experts, encoders, heads, weights in and out. No losses here."""
