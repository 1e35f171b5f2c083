"""Makes bundles: from raw interactions to a directory that `model_store` can open. Never imports `service`.

The modules at this level are programs, one per stage: each has arguments, a `run()` and a summary. What they share
lives in rooms. A room may import itself and the rooms to its left, and `model_store`:

    data ← run ← items ← lm ← memory ← rows ← report ← studies

`words` (recommendation by words) stands beside this line: it imports `data`, `run` and `items`, and only programs
import it. A program may import every room. `pipeline`, `study` and the room `studies` also import programs; nothing
else does.
"""
