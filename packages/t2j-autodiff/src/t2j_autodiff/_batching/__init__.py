"""Flat torch functions over a batch."""
