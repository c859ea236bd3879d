"""Compiled FlexAttention over a paged cache."""
