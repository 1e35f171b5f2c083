"""Words: what a user asks, ranked together with the memory of what the user did (MR.Rec, arXiv 2510.14629).

A pure library that training and serving share: no store, no HTTP, no training. Imports from `model_store`: `errors`
and `grounding` (the vectors of documents are in its Faiss index).
"""
