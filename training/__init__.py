"""Makes bundles: from raw interactions to a directory `model_store` can open. Never imports `service`."""
