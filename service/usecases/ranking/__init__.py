"""What a caller may ask of a list and its order, and the one way in which it is done:

    candidates → scores + boosts → rotation → diversity → caps → pins → page

`requests` is what is asked, known on the way, and answered. `rules` are what a request asks of the order. `candidates`
makes the list that they work on from what the model answered, or `cold_start` without the model, `order` sorts it,
`selection` takes items from it, and `draft` does all of this. `moves` says what a rule did to the place of an item. All
of it is pure: neither store, engine nor clock.
"""
