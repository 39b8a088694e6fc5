"""The record: trials asked for and told, kept on disk, and what follows from them."""
