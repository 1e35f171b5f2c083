"""What is known of items without the language model: co-occurrence, likeness of titles, item-kNN, the neighbour table.

In: a split. Out: sparse tables of near items, item vectors, scores of all items, and the share of item neighbours in a
forecast that the caller provides. No language model and no prompts. May import `training.data` and `training.run`.
"""
