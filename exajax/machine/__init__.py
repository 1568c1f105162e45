"""Descriptions of machines: chips, fabrics, clusters and software, read from `meshes/`."""
