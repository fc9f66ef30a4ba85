"""The cycle-accurate path: `simulator` is the entry, `machine` the compiled rules of time, `races` the order check."""

from cycle.simulator import simulate

__all__ = ["simulate"]
