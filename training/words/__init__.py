"""Recommendation by words (MR.Rec): what a user asks, together with the memory of what the user did, ranks the items.

`split` makes targets of the queries of a data set. `texts` writes the documents of items, `tables` the tables of near
items, `aspects` the global memory. `learning` learns the weights of the ranking, `labels` and `selecting` the selector
of memories. `rows` are the rows of the evaluation. The index, the memories and the ranking themselves are in
`model_store.words`, which serving uses too. May import `training.data`, `run` and `items`.
"""
