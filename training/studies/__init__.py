"""The open questions that the paper leaves, a module each: `run(setting)` → `Finding`. See `training.study`."""
