"""What a network is fed: tokens of prompts, chat templates, and the positions that are edited."""
