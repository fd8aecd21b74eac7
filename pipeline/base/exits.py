"""Exit codes of every command and rank. Imports nothing, so that a program can end with one before its slow imports."""

EXIT_FAILED = 1
EXIT_USER_ERROR = 2  # one sentence says what to change
EXIT_PREEMPTED = 75  # saved and stopped on request: the same command continues the run (EX_TEMPFAIL of sysexits.h)
EXIT_FENCED = 76  # a later attempt of the same job has taken over the run
EXIT_HUNG = 124  # the watchdog found a rank that stands still; as timeout(1) has it
EXIT_INTERRUPTED = 130  # stopped by Ctrl-C, saved where there was something to save: 128 + SIGINT, as shells report it
