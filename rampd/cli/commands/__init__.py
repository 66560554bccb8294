"""The commands of `rampctl`, one module a theme."""
