"""What outlives a process: the feature store, the ledger of results, experiment tracking."""
