"""The bundle format, the networks that a bundle's weights fill, and the way from a prompt to a ranked list.

Training writes bundles and the service opens them. A line belongs into this package if and only if a difference in it
between training and serving would make recommendations worse without an error, or would make bytes on disk or in the
memory store unreadable. README.md describes the files of a bundle field by field.

Modules and sub-packages in the order of imports. Each imports only those above it, none imports those beside it, and
nothing is imported from `service` or `training`. Only `lm`, `grounding`, `voices`, `words`, `bundle`, `inference`, the
search in `beams`, and two modules of `memory` load torch or faiss.

    errors                what can be wrong with a bundle, a language model or a stored state
    memory                memory elements: stored bytes, the retriever, the input of the top half
    manifest              the settings of a bundle that training fixes and serving obeys
    text                  histories, titles and their tokens
    lm                    the language model, cut into two halves
    beams                 constrained beam search over the titles of the catalogue
    catalogue             the items, their attributes and when they are available
    grounding             the index of title embeddings
    answers, files        queries and answers as plain values; names and checksums of the files of a bundle
    signature             who made a bundle: signs its manifest, and verifies it
    voices                distributions over the next item from a user's events, beside the language model
    words                 queries in words, ranked with local and global memory
    view                  an opened bundle without networks: manifest, catalogue, codec
    bundle                an opened bundle with all parts; the writer of bundles
    inference             encode → retrieve → combine → generate → ground, for batches

Legend. Letters in tensor shapes: `B` queries in a batch, `T` tokens, `D` hidden size, `M` memory elements, `S` selected
memory elements, `V` tokens of the vocabulary, `N` items, `K` results. In the paper and in the settings, `K` is the
number of recent interactions and `L` the layer where the language model is cut.

    paper            code              meaning
    h_t              recent            the K most recent interactions
    x_{u,h}          prompt            text made of them
    z_t              query_state       layer-L state of the recent window
    M_{u,t}, z_m     memory_states     layer-L states of older interactions
    S, s_m           scores            the retriever's distribution over memory
    δ_m              gain              how much element m helps to predict the truth
    S′               target_weights    softmax of the gains
    y                target_title      tokens of the true next item
    LLM^(:L), (L:)   bottom, top       halves of the split LLM
"""
