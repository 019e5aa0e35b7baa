"""Speed and memory: all variants measured in one session, each in a process of its own, in turns.

`profile` is the stage and `calls` what it measures; `taken` is one measurement, `rounds` the turns that it consists
of; `processes` and `measured` are the two ends of the measured processes; `latency` has the percentiles and their
intervals, `race` the ratio of two variants. Only the first two know that it is graphs.
"""

from stages.profile.options import ProfileOptions
from stages.profile.profile import PROFILE, profile
from stages.profile.race import Race, faster

__all__ = ["PROFILE", "ProfileOptions", "Race", "faster", "profile"]
