"""How near generated images are to real ones, by the features of a classifier."""
