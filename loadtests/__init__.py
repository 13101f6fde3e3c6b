"""Load tests: how fast Headgate is beside other ways to serve the same models, and how it bears users.

``python -m loadtests.bench`` prints the table of docs/performance.md, ``python -m loadtests.profile_path`` tells where
each microsecond goes, ``python -m loadtests.users`` runs locust. All traffic stays on this machine.
"""

import os

# onnxruntime reads this once, when it is first imported; child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
