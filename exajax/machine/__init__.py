"""What a machine is: chips, fabrics, clusters and software, as `meshes/` describes them."""
