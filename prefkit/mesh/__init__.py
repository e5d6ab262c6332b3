"""Human meshes: a free body, cameras, errors, a renderer, and the payload of a mesh candidate."""
