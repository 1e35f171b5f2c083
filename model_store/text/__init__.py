"""From events and titles to tokens.

`history` defines the order and identity of events, the visible text of titles and windows. `vocabulary` gives each
title one token. `prompt` turns the titles of a window into tokens. Tensors, models and the catalogue are not here: this
package loads no torch. Imports from `model_store`: `errors`, `manifest`.
"""
