"""rampd: an asyncio-native dispatcher daemon for RAMP machine-learning challenges."""

__version__ = "0.1.0"
