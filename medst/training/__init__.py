"""Optimiser, schedule, checkpoint and the loop as a generator of records. No MLflow, no Ray here."""
