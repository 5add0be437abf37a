"""Parity: what is served, held against what training would see, and why where they differ."""
