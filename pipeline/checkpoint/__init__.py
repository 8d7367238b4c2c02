"""What a checkpoint folder is: its facts, its files, whether it can be trusted, its download. Imports no torch."""
