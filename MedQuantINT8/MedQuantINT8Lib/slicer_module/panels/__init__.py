"""The window's three panels, and what they share. The only rooms, with widget.py, that know Qt."""
