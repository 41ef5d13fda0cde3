"""What a direction is, and the files that it is kept in. Knows no model and no network."""
