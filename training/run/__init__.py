"""How a stage runs: options, recipes, certificates, devices, processes, the training loop, metrics with intervals.

Nothing here knows a particular model or stage: losses and metrics come in as functions and arrays. May import
`training.data`.
"""
