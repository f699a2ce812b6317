"""Entries of a matrix in; factors, predictions, their spread and the rank out."""
