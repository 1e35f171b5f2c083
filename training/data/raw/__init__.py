"""Raw formats: files of tables and of JSON lines as they come, read to two frames that cleaning understands.

Imports of `training.data` only what cleaning also uses, and `dataset`.
"""
