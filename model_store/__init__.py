"""The bundle format, the networks that a bundle's weights fill, and the way from a prompt to a ranked list.

Training writes bundles and the service opens them. A line belongs into this package if and only if a difference in it
between training and serving would silently make recommendations worse, or would make bytes on disk or in the memory
store unreadable. README.md describes the files of a bundle field by field.

Modules and sub-packages, in the order of imports: each may import those before it, and nothing of `service` or
`training`.

    errors               what can be wrong with a bundle, a language model or a stored state
    memory               memory elements: stored bytes, the retriever, the input of the top half
    manifest             the facts of a bundle that training fixes and serving obeys
    text                 histories, titles and their tokens
    lm                   the language model, cut into two halves
    beams                constrained beam search over the titles of the catalogue
    catalogue            the items, their attributes and when they are available
    grounding, neighbors the index of title embeddings; the table of neighbouring items
    bundle               the folder on disk that holds all of these
    inference            encode → retrieve → combine → generate → ground, for batches

Legend. Tensor letters: `B` users in a batch, `T` tokens, `D` hidden size, `M` memory elements, `S` selected memory
elements, `V` tokens in the vocabulary, `N` items, `K` results (in the paper and in `recent_length`: recent
interactions), `L` the layer where the language model is cut.

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
