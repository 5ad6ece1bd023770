"""Mathematics without parameters.

Arrays are channels last. Boxes are xyxy everywhere: (x_min, y_min, x_max, y_max), in
pixels of continuous coordinates, pixel i being the interval from i to i + 1.
"""
