"""A language model as the reasoner of `model_store.words`: it names aspects, reads memories, writes the ideal item.

    dialogue   the format: what the model reads and may write, as text and as tokens
    reading    a batch of dialogues in one cache of keys and values; the next token of each
    policy     both turns of many dialogues, greedy or drawn
    language   `LanguageReasoner`, for one query at a time
    files      the folder of a bundle

Training and serving share it. Imports from `model_store`: `errors` and `words`.
"""
