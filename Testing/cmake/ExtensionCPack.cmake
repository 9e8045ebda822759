# Packaging belongs to Slicer; nothing is done here.
