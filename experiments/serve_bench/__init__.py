"""Servers under load, by any OpenAI-compatible address."""
