"""The Lua scripts that change and read the keys of users and of the queue. Knows no client."""
