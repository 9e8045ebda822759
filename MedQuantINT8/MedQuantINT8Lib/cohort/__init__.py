"""Many scans with one model: where they come from, workers that segment them, and the journal that says what is done."""
