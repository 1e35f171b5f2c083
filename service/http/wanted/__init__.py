"""What a request for recommendations may want, as JSON: the language of `filters`, the `rules` of the order, `bodies`.

Knows pydantic, but no HTTP.
"""
