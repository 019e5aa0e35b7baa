"""How the speed of language models is measured."""

from __future__ import annotations

from pydantic import Field, field_validator

from stages.profile.options import TurnOptions

__all__ = ["ProfileLanguageOptions"]


class ProfileLanguageOptions(TurnOptions):
    """How the speed of language models is measured: in requests of a prompt and `new_tokens` tokens that follow it.

    At every batch size, prompts as long as the documents of the data, cut to `longest_prompt` tokens, give latency and
    throughput; besides, all prompts of each length of `prompt_tokens`. What has no room in the model's positions is cut
    to what has. `inputs`: how many lengths stand for the mix.
    """

    baseline: str = "original"
    batch_sizes: tuple[int, ...] = Field(default=(1, 4), min_length=1)
    prompt_tokens: tuple[int, ...] = (32, 128)
    longest_prompt: int = Field(default=1024, ge=8)
    new_tokens: int = Field(default=32, ge=2)
    budget_s: float = Field(default=60.0, gt=0)
    timeout_s: float = Field(default=600.0, gt=0)

    @field_validator("batch_sizes", "prompt_tokens")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in value):
            raise ValueError("batch sizes and lengths of prompts are 1 or more")
        return value
