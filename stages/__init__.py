"""The boxes of the flow: one file or one folder each; beside them what they share.

ONNX Runtime's wheels report sessions, models and the machine to their makers unless they are told not to before the
first import (its `Privacy.md`). Nothing is sent anywhere from here, so they are told before any stage can import it.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
