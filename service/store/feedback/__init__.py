"""What users did with lists that they were shown, and the move of a guest to a user: their keys and scripts."""
