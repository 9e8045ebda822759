"""The importers, which turn networks of other programs into a ModelPackage; one file (or family of files) each."""
