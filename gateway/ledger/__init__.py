"""The ledger: every feedback event joined with its prediction, and the label that follows from them."""
