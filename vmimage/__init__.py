"""Bakes virtual-machine images and proves them before anyone downloads them."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
"""The checkout: images.yaml, provision/, packer/ and templates/ are read from here."""
