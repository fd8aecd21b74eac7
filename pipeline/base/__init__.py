"""What everything else stands on: errors, exit codes, files, locks. Without torch."""
