"""Classification networks and what helps to train them."""
