"""The rows of AutoMR + : the bundle itself, the bundle without one of its parts, and references for what it combines.

AutoMR + has two kinds of memory: the states that the language model reads, and the older events that the voices read
(`model_store/voices`). `own_rows` lists the rows. `strangers` gives a user the memory of another one, `voice_rows`
ranks by a single voice, and `boosted` combines the voices by boosted trees.
"""
