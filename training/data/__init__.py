"""Data sets: cleaning them, splitting them by time, and a synthetic world with a provable answer."""
