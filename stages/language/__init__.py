"""Causal language models: checkpoints in, checkpoints out, quantised for the servers that load them.

The same boxes as for graphs (prepare, quantise, check, profile, package, verify), over another kind of artifact: a
`checkpoint`, a directory as `save_pretrained` writes it, or a decoder in ONNX with its generation configuration.
"""
