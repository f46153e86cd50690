"""Captioned pictures without end: `shapes` draws them, `checker` reads them back."""
