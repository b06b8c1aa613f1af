"""Faster versions of networks with the same outputs."""
