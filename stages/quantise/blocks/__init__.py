"""Block-wise quantisation of weight matrices, in plain NumPy: one file a method (`rtn` is in `ranges`).

Each takes a matrix [in, out] and a `BlockFormat` and gives a `BlockMatrix`; `packing` lays that out for an engine.
"""
