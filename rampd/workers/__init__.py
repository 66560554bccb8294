"""Where submissions run. Workers know nothing of stores, and no worker knows another."""
