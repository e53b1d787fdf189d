"""Studies: factors x design x seeds to trials; the ledger; execution. Knows many trials, computes none."""
