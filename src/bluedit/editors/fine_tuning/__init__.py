"""Fine-tuning of one weight within a box: FT-L and FT-M."""
