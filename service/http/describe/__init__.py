"""The API describes itself: the OpenAPI document, and an example of each body. Imports the other rooms of http."""
