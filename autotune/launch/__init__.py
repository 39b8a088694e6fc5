"""The processes of one trial, from the fork until the last of them is gone."""
