"""What a person is handed: progress, report, and a folder to train with."""
