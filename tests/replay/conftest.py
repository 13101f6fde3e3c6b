"""As many examples as the property tests of the codecs try."""

from __future__ import annotations

from tests.oip import conftest

__all__ = ["conftest"]
