"""Section 4 of the paper, measured on any model: each analysis gives a typed result, a table and a figure."""
