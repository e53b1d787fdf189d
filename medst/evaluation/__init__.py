"""Downstream tasks on embeddings computed once; evaluators yield records. No training of encoders here."""
