"""Looking through items and users without a recommendation: related items, lists, search.

`related`: what goes together with an item. `items`: pages of the catalogue, by words and filters. `users`: pages of the
users of the store. Every call does a bounded part of the work, and its cursor says where the next one goes on.
"""
