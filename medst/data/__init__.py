"""From files to batches: phantom, readers, report text, store, loader. No model, no tracking here."""
