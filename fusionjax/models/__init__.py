"""Models and adapters: loaded, checked, written."""
