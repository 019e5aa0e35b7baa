"""The variants of a language model: one file each, which registers its handler, and what they share."""
