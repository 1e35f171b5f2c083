"""The language model in training: making or loading it, prompts from histories, tuning, states, likelihoods.

The network itself and its split are in `model_store.lm`. Memory appears here only as states that are given to the top
half; choosing memories is in `training.memory`. May import `training.data`, `training.run` and `training.items`.
"""
