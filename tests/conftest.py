"""Settings for every test: property tests are the same on each run, and are not judged by the machine's speed."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "2")
settings.register_profile(
    "studio", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("studio")
