"""Users of very many events: what they have seen, read in parts, and their keys, emptied in steps."""
