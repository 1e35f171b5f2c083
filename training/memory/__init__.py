"""How the retriever learns which memories help: annotations, training, selection, metrics.

The retriever network is in `model_store.memory`. May import `training.data`, `run`, `items` and `lm`; knows nothing of
the rows of the evaluation.
"""
