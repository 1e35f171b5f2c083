"""Words: what a user asks, ranked together with the memory of what the user did (MR.Rec, arXiv 2510.14629).

A pure library that training and serving share: no store, no HTTP, no training. In the order of imports:

    events, texts, vectors   an event with words; words of texts; unit vectors
    memory                   local memory: entries of one user, a pure function of the events
    aspects                  global memory: what matters for kinds of queries
    encoders, lexical        text → vector; BM25
    index                    the hybrid index of items
    evidence                 features of candidates; `LocalMemory` as arrays
    ranker, selector         weights of the features; which memories are used
    reasoning                query → aspects → entries → ideal profile, behind the interface `Reasoner`
    answer                   `Words.answer`: all steps for a batch of queries
    live                     items that came after training
    files                    `save_words`, `open_words`

`events`, `texts`, `vectors`, `memory` and `aspects` need neither torch nor faiss. Imports from `model_store`: `errors`
and `grounding` (the vectors of documents are in its Faiss index).
"""
