"""The selection service: plans served in ranges, signals taken in, the next epoch planned of them.

`serving` starts it, `app` is what it answers to, `runs` what it keeps on disk, `planner` what plans
beside it. The client is `dataplane.remote`. Only this package imports starlette and uvicorn.
"""
