"""Programs that measure; they print ratios taken in one run, and never pass or fail."""
