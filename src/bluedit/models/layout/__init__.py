"""Where the edited weights of a network are: module maps, their discovery, the orientation of weights."""
