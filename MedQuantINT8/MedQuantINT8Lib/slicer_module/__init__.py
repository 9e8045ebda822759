"""Everything that knows Slicer: scene, views, logic, window."""
