"""Texts that `scaffold` writes beside the lessons; nobody imports them from here."""
