"""Where a network keeps what is edited: module maps, their discovery, the orientation of weights."""
