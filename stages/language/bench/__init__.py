"""Speed of a language model in a server: requests as they come, against an endpoint that speaks OpenAI's protocol.

`bench` sends them and makes the figures, `completions` speaks the protocol, `prompts` cuts what is asked from real
text.
"""

from stages.language.bench.bench import Bench, BenchOptions, Level, bench

__all__ = ["Bench", "BenchOptions", "Level", "bench"]
