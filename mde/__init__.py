"""Finds the mixture of text domains that a language model should be pre-trained on."""
