"""What a run tells while it goes on and after it: the live table, plain lines, the log, metrics, the funnel."""
