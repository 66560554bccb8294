"""What runs elsewhere needs: archives for the way there and back. Knows nothing of workers."""
