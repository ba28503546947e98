"""Settings for the whole suite."""

from hypothesis import HealthCheck, settings

import sr_edge.remote.line  # noqa: F401  its import is not to count against the short deadlines of a first test

# no verdict depends on the clock: machines that run tests are slow and shared
settings.register_profile("sr-edge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sr-edge")
