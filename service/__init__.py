"""The service: answers HTTP requests with a bundle. Never imports `training`.

Rooms: `http` (requests and answers), `usecases` (what is done for them), `engine` (the process of the model, and the
admission to it), `store` (Redis), `identity` (who calls, and what they may do). Modules beside the rooms: `__main__` is
the command line, `server` and `commands` run its commands, `app` builds the ASGI application, `resources` opens what
both need, `doctor` checks a set-up; `settings`, `errors`, `logs` and `metrics` serve all of them.
"""
