"""Trains a language model as the reasoner of queries in words; `training.reason` is the program.

situations   a target as the model meets it: aspects, memories, and the reward of what the model writes
headroom     what better aspects, memories and ideal items could win, before anything is trained
traces       dialogues that are verified to raise the rank of the truth
tuning       adapters; supervised learning of dialogues
grpo         GRPO by trl: rollouts with retrieval between two turns
judging      the reward of the most probable thoughts, and the weights of the ranking that fit them
"""
