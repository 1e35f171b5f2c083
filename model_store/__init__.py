"""What a bundle is, how to open one, and the modules its weights fill.

Tensor letters: `B` users in a batch, `T` tokens, `D` hidden size, `M` memory elements, `S` chosen ones, `V` vocabulary,
`N` items, `K` results.

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

A line belongs here if and only if a difference in it between training and serving would silently make recommendations
worse, or make bytes on disk or in the memory store unreadable.
"""
