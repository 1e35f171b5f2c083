"""Data sets: reading raw formats, cleaning, splitting by time, and the synthetic bookshop with a provable answer.

Here an interaction is a row of a table and an item is a row number. No models, no prompts, no metrics, no stages.
Imports no other room of `training`, and of `model_store` only how titles and histories are normalised.
"""
