"""The steps, one for each number of the schema."""
