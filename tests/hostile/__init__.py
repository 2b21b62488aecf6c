"""Hostile inputs of every kind that is read: how they are made, and how each is tried (tests/host/test_hostile.py)."""
