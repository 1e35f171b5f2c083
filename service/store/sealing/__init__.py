"""Records of users are encrypted before they reach the store, and cannot be read once the user's data key is gone."""
