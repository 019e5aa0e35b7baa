"""Speed and memory: all variants measured in one session, each in a process of its own, in turns.

`profile` is the stage; `processes` and `measured` are the two ends of the measured processes; `latency` has the
percentiles and their intervals, `race` the ratio of two variants.
"""

from stages.profile.profile import PROFILE, ProfileOptions, profile
from stages.profile.race import Race, faster

__all__ = ["PROFILE", "ProfileOptions", "Race", "faster", "profile"]
