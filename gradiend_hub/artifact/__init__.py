"""Directions and the files that they are kept in. Knows no model and no network."""
