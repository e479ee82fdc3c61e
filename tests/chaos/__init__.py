"""Every failure that must be survived, on real processes: one test or more for each row."""
