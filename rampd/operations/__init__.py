"""What an operator asks of an event from outside: its status, requests to its daemon, a check of what it needs.

Works on the event's files, whether a daemon serves it or not, and never needs one. `rampd.cli` shows the results.
"""
