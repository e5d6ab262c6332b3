"""Human meshes: a body model (the "free body"), cameras, rotations, errors and a renderer that needs no display.

The camera frame: metres, x right, y down, z forward (away from the camera). Pixels: x right, y down.
"""
