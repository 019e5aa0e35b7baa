"""Suites of tasks for language models, in the form of lm-evaluation-harness: local tasks, asked of any session.

`harness` speaks to that library, `suite` is the stage.
"""

from stages.language.suite.suite import (
    SUITE,
    SUITE_KIND,
    SuiteOptions,
    locate_suite,
    suite,
    task_results,
)

__all__ = ["SUITE", "SUITE_KIND", "SuiteOptions", "locate_suite", "suite", "task_results"]
