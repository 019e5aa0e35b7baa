"""The variants' handlers: one file a precision, each a config and the function that builds it.

`stages.variants` lists them; `stages.quantise.variant` is what they share.
"""
