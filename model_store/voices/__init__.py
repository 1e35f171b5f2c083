"""Voices: distributions over the next item, from a user's events and beside the language model.

    p(item) = Σ_v w_v · p_v(item)

Each voice v is a distribution over items: the forecast of the language model, popularity, and, for each event of the
user, the item itself (it may come back) and the items near it. `past` describes the events, `gate` turns descriptions
into the weights w, `tables` has the near items of each item, `votes` and `mixtures` add up, `candidates` and `combiner`
rank, `reasons` explain, and `voices` joins them. The language model, prompts and retrieval by hidden states are not
here. Item vocabulary only. Imports from `model_store`: `errors`, `manifest` and `answers`.
"""
