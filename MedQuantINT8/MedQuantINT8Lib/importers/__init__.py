"""Ways into a ModelPackage, one file each."""
