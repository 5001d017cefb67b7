"""The code that two or more notebooks share."""
