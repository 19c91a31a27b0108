"""What is installed, what is wrong with it, and how to mend it: `python -m crbp_d2.doctor`.

Runs when everything else is missing: only the standard library is imported before the check that
is able to report an absence.
"""
