"""The serving log: a sample of what was served, written beside lookups, read by `verify --from-log` and as training sets."""
