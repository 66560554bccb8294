"""Command lines. They parse, call and print; they decide nothing."""
