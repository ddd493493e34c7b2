"""How the models that ship with bluedit are made: training, gates, model cards, and texts for second moments."""
