"""Comparing directions: what they share, what one does to another, and how they combine."""
