"""Speed and memory of language models: requests as they come, prefill and decode apart, all variants in turns.

`profile` is the stage, `requests` what the measured processes do, `prompts` what they are asked, `generation` the
figures of prefill and decode. The turns, the processes and the intervals are those of `stages.profile`.
"""

from stages.language.profile.options import ProfileLanguageOptions
from stages.language.profile.profile import PROFILE_LANGUAGE, profile_language

__all__ = ["PROFILE_LANGUAGE", "ProfileLanguageOptions", "profile_language"]
